//! Real nodes as child processes: started, killed, stopped, wiped, waited for.
