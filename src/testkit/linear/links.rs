//! A list that gives and takes back its members at any place. Decides only.

/// A list of acts from which any one can be taken and put back in the opposite order.
pub(super) struct Links {
    next: Vec<usize>,
    last: Vec<usize>,
}

impl Links {
    /// The acts of those numbers for which it says so.
    pub(super) fn of(members: impl Iterator<Item = bool>) -> Links {
        let members: Vec<bool> = members.collect();
        let end = members.len();
        let mut links = Links {
            next: vec![end; end + 1],
            last: vec![end; end + 1],
        };
        let mut last = end;
        for number in (0..end).filter(|number| members[*number]) {
            links.next[last] = number;
            links.last[number] = last;
            last = number;
        }
        links.last[end] = last;
        links
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        let end = self.next.len() - 1;
        std::iter::successors(Some(self.next[end]), move |number| Some(self.next[*number]))
            .take_while(move |number| *number != end)
    }

    pub(super) fn remove(&mut self, number: usize) {
        let (last, next) = (self.last[number], self.next[number]);
        self.next[last] = next;
        self.last[next] = last;
    }

    pub(super) fn put_back(&mut self, number: usize) {
        let (last, next) = (self.last[number], self.next[number]);
        self.next[last] = number;
        self.last[next] = number;
    }
}
