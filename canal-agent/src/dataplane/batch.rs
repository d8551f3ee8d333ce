//! bpf(2) commands that aya does not wrap: many elements of a table in one call.
//!
//! A change of an array of maps waits for a grace period of RCU, some ten milliseconds, and a batch waits once for all
//! (Linux 6.8; before that once for each, which is slower and as right).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use aya::Pod;

/// `enum bpf_cmd`, uapi/linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_BATCH: libc::c_long = 26;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;

/// The beginning of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The member `batch` of `union bpf_attr`.
#[repr(C)]
struct Batch {
    resume_from: u64,
    resume_at: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A new array of `u32`s, all zero.
pub(super) fn create_array(entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr =
        Create { map_type: ARRAY, key_size: 4, value_size: 4, max_entries: entries, map_flags: flags };
    let fd = bpf(MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel has just handed it out, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A batch that did not come to its end.
#[derive(Debug)]
pub(super) struct Interrupted {
    /// So many elements, the first ones, have their values.
    pub(super) written: usize,
    pub(super) error: io::Error,
}

/// Sets the elements at `keys`, in this order, of an array of `u32`s, or of maps by their file descriptors.
pub(super) fn update_array(array: impl AsFd, keys: &[u32], values: &[u32]) -> Result<(), Interrupted> {
    debug_assert_eq!(keys.len(), values.len());
    update(&array, keys, values)
}

/// Sets the elements at `keys`, in this order, of any table with such keys and values.
pub(super) fn update<K: Pod, V: Pod>(table: impl AsFd, keys: &[K], values: &[V]) -> Result<(), Interrupted> {
    let count = u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX);
    if count == 0 {
        return Ok(());
    }
    let mut attr = Batch {
        resume_from: 0,
        resume_at: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: descriptor(&table),
        elem_flags: 0,
        flags: 0,
    };
    bpf(MAP_UPDATE_BATCH, &mut attr).map(drop).map_err(|error| {
        // The kernel says how far it came, unless it did not begin.
        let written = if attr.count < count { attr.count as usize } else { 0 };
        Interrupted { written, error }
    })
}

/// The same, but an element that cannot be set keeps no other back: `refused` is told its position.
pub(super) fn update_each<K: Pod, V: Pod>(
    table: impl AsFd,
    keys: &[K],
    values: &[V],
    mut refused: impl FnMut(usize, io::Error),
) {
    let mut at = 0;
    while let Err(Interrupted { written, error }) = update(&table, &keys[at..], &values[at..]) {
        at += written;
        refused(at, error);
        at += 1;
    }
}

/// As the kernel wants it in attributes and as the value of an array of maps.
pub(super) fn descriptor(map: &impl AsFd) -> u32 {
    map.as_fd().as_raw_fd().cast_unsigned()
}

pub(super) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a prefix of `union bpf_attr` of the size given, and what it points at outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
