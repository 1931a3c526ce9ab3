//! One tree of the modules' options, from defaults, file, environment and flags.
