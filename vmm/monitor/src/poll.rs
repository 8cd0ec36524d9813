//! Looks at one descriptor, for types that own one but do not say so by `AsFd`.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The descriptor that `owner` owns.
pub fn descriptor(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `owner` keeps its descriptor open for as long as it lives, and the result borrows it.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Whether any of `flags` holds now.
pub fn is(owner: &impl AsRawFd, flags: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(descriptor(owner), flags)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
}
