//! A log that keeps its newest entries only.

use std::collections::VecDeque;

/// At most `MAX` entries, oldest first.
#[derive(Debug)]
pub(crate) struct BoundedLog<T, const MAX: usize>(VecDeque<T>);

impl<T, const MAX: usize> Default for BoundedLog<T, MAX> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T, const MAX: usize> BoundedLog<T, MAX> {
    pub(crate) fn add(&mut self, entry: T) {
        if self.0.len() == MAX {
            self.0.pop_front();
        }
        self.0.push_back(entry);
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.iter()
    }

    /// The newest of the entries that are looked for.
    pub(crate) fn find(&self, is_wanted: impl Fn(&T) -> bool) -> Option<&T> {
        self.0.iter().rev().find(|entry| is_wanted(entry))
    }

    /// The same, to be changed.
    pub(crate) fn find_mut(&mut self, is_wanted: impl Fn(&T) -> bool) -> Option<&mut T> {
        self.0.iter_mut().rev().find(|entry| is_wanted(entry))
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
