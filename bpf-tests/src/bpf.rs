//! bpf(2), for commands that aya does not wrap.

use std::io;

/// `attr`: the beginning of `union bpf_attr` as the command has it, without padding at its end. A file descriptor that
/// comes of it is the caller's.
pub(crate) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` of the size given, and what it points at outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
