//! A binary heap of numbered things whose keys change.

/// The smallest key is at the top; of equal keys, that of the lower number. Each number is in it at most once.
#[derive(Debug)]
pub(super) struct Heap<K> {
    heap: Vec<(K, u32)>,
    /// For each number, its place in `heap` plus one, or 0.
    place: Vec<u32>,
}

impl<K: Ord + Copy> Heap<K> {
    /// A heap of numbers below `numbers`.
    pub(super) fn new(numbers: u32) -> Self {
        Self {
            heap: Vec::new(),
            place: vec![0; numbers as usize],
        }
    }

    /// The smallest key and its number.
    pub(super) fn top(&self) -> Option<(K, u32)> {
        self.heap.first().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Gives `number` the key `key`, whether it is in the heap or not.
    pub(super) fn set(&mut self, number: u32, key: K) {
        let place = self.place[number as usize];
        let at = if place == 0 {
            self.heap.push((key, number));
            self.heap.len() - 1
        } else {
            self.heap[place as usize - 1].0 = key;
            place as usize - 1
        };
        self.settle(at);
    }

    /// Takes `number` out, if it is in.
    pub(super) fn remove(&mut self, number: u32) {
        let place = std::mem::take(&mut self.place[number as usize]);
        if place == 0 {
            return;
        }
        let at = place as usize - 1;
        self.heap.swap_remove(at);
        if at < self.heap.len() {
            self.settle(at);
        }
    }

    /// Takes out the smallest.
    pub(super) fn pop(&mut self) -> Option<(K, u32)> {
        let top = self.top()?;
        self.remove(top.1);
        Some(top)
    }

    /// Moves what is at `at` to where it belongs.
    fn settle(&mut self, mut at: usize) {
        while at > 0 && self.heap[at] < self.heap[(at - 1) / 2] {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
        loop {
            let children = 2 * at + 1..(2 * at + 3).min(self.heap.len());
            let Some(least) = children.min_by_key(|child| self.heap[*child]) else {
                break;
            };
            if self.heap[at] <= self.heap[least] {
                break;
            }
            self.swap(at, least);
            at = least;
        }
        self.place[self.heap[at].1 as usize] = at as u32 + 1;
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.place[self.heap[a].1 as usize] = a as u32 + 1;
        self.place[self.heap[b].1 as usize] = b as u32 + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn as_a_sorted_map(ops in prop::collection::vec((0u32..20, prop::option::of(0u64..50)), 1..300)) {
            let mut heap = Heap::new(20);
            let mut map = BTreeMap::new();
            for (number, key) in ops {
                if let Some(key) = key {
                    heap.set(number, key);
                    map.insert(number, key);
                } else {
                    heap.remove(number);
                    map.remove(&number);
                }
                prop_assert_eq!(heap.top(), map.iter().map(|(n, k)| (*k, *n)).min());
                prop_assert_eq!(heap.len(), map.len());
            }
            let mut sorted: Vec<_> = map.into_iter().map(|(n, k)| (k, n)).collect();
            sorted.sort_unstable();
            prop_assert_eq!(std::iter::from_fn(|| heap.pop()).collect::<Vec<_>>(), sorted);
        }
    }
}
