//! Installing a seccomp filter that was compiled earlier.
//!
//! A program is an array of `sock_filter` as the kernel reads it and as libseccomp exports it: 8 bytes an instruction.

use std::io;

/// Bytes of one instruction.
const INSTRUCTION_BYTES: usize = size_of::<libc::sock_filter>();
/// The kernel's own limit (BPF_MAXINSNS).
const INSTRUCTIONS_LIMIT: usize = 4096;

/// Installs `program` for this process; it needs `no_new_privs` or CAP_SYS_ADMIN.
pub fn install(program: &[u8], flags: libc::c_ulong) -> io::Result<()> {
    let count = program.len() / INSTRUCTION_BYTES;
    if count == 0 || count > INSTRUCTIONS_LIMIT || !program.len().is_multiple_of(INSTRUCTION_BYTES) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a seccomp program"));
    }
    let mut instructions: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION_BYTES)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let header = libc::sock_fprog { len: count as u16, filter: instructions.as_mut_ptr() };
    // SAFETY: header and instructions outlive the call, which copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
