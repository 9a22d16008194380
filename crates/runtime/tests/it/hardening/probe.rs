//! Programs of one system call, whose exit code is its errno: nothing of a C library or of the
//! image is in the way.

/// Where the program is loaded; its code follows one header of each kind.
const BASE: u64 = 0x40_0000;
const HEADERS: usize = 64 + 56;

pub(super) enum Arg {
    Number(i64),
    Text(&'static str),
}

pub(super) use Arg::{Number, Text};

/// Calls the kernel; exits with 0 or the errno.
pub(super) fn call(number: i64, args: &[Arg]) -> Vec<u8> {
    // mov rax, then rdi, rsi, rdx, r10, r8: ten bytes each.
    const REGISTERS: [[u8; 2]; 5] =
        [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8]];
    let end = exit_with_errno();
    let mut data_at = BASE + (HEADERS + 10 * (1 + args.len()) + 2 + end.len()) as u64;
    let mut code = vec![0x48, 0xb8];
    code.extend(number.to_le_bytes());
    let mut data = Vec::new();
    for (register, arg) in REGISTERS.iter().zip(args) {
        code.extend(register);
        match arg {
            Number(number) => code.extend(number.to_le_bytes()),
            Text(text) => {
                code.extend(data_at.to_le_bytes());
                data.extend(text.bytes());
                data.push(0);
                data_at += text.len() as u64 + 1;
            }
        }
    }
    code.extend([0x0f, 0x05]);
    code.extend(end);
    code.extend(data);
    program(&code)
}

/// Calls the kernel as a 32-bit program would.
pub(super) fn old_call(number: u32) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    // int 0x80; movsxd rax, eax
    code.extend([0xcd, 0x80, 0x48, 0x63, 0xc0]);
    code.extend(exit_with_errno());
    program(&code)
}

/// Exits with the low byte of its effective user id.
pub(super) fn user() -> Vec<u8> {
    // mov eax, geteuid; syscall; mov edi, eax; mov eax, exit_group; syscall
    let code = [0xb8, 107, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc7, 0xb8, 231, 0, 0, 0, 0x0f, 0x05];
    program(&code)
}

fn exit_with_errno() -> [u8; 18] {
    // xor edi, edi; test rax, rax; jns +4; neg eax; mov edi, eax; mov eax, exit_group; syscall
    [0x31, 0xff, 0x48, 0x85, 0xc0, 0x79, 4, 0xf7, 0xd8, 0x89, 0xc7, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]
}

/// An ELF file with one readable and executable segment.
fn program(code: &[u8]) -> Vec<u8> {
    let size = (HEADERS + code.len()) as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |number: u64, bytes: usize| file.extend(&number.to_le_bytes()[..bytes]);
    // Header: executable, x86_64, entry, where the program headers are, sizes.
    for (number, bytes) in [
        (2, 2),
        (62, 2),
        (1, 4),
        (BASE + HEADERS as u64, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (64, 2),
        (0, 2),
        (0, 2),
        // Segment: load, readable and executable, all of the file.
        (1, 4),
        (5, 4),
        (0, 8),
        (BASE, 8),
        (BASE, 8),
        (size, 8),
        (size, 8),
        (4096, 8),
    ] {
        put(number, bytes);
    }
    file.extend(code);
    file
}
