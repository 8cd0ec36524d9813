//! Classic BPF: programs that decide whether a frame is captured.
//!
//! McCanne and Jacobson, "The BSD Packet Filter", USENIX 1993; the instruction set is the one libpcap compiles to. A program is
//! checked once, when it comes in; it jumps only forward, so it ends. It reads a frame where it lies, so that nothing of a
//! frame it refuses is copied.

use capture_filter::Instruction;
use thiserror::Error;

use super::view::View;

/// The most instructions a program may have; the limit of Linux and the BSDs.
pub const MAX_INSTRUCTIONS: usize = 4096;
/// Words of scratch memory.
const MEMORY: usize = 16;

/// Why a program is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// It has no instruction.
    #[error("the filter program is empty")]
    Empty,
    /// It is too long.
    #[error("the filter program has more than {MAX_INSTRUCTIONS} instructions")]
    TooLong,
    /// An instruction does not exist, or cannot do what it says.
    #[error("instruction {0} of the filter program is invalid: {1:?}")]
    Invalid(usize, Instruction),
    /// An instruction leads out of the program or back, and then it might not end.
    #[error(
        "instruction {0} of the filter program jumps backward or past the end; `protochain` does that"
    )]
    Jump(usize),
    /// It can run past its end.
    #[error("the filter program does not end with a return")]
    NoReturn,
}

/// A checked program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(Vec<Op>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    /// A = a number of so many bytes at a fixed place.
    LoadAbsolute(usize, u32),
    /// A = a number of so many bytes, so far behind X.
    LoadIndirect(usize, u32),
    /// A = the operand.
    Load(Source),
    /// X = the operand.
    LoadX(Source),
    /// X = four times the low half of the byte at a fixed place: the length of an IPv4 header.
    LoadHeaderLength(u32),
    Store(usize),
    StoreX(usize),
    Compute(Arithmetic, Operand),
    Negate,
    /// So many instructions on.
    Jump(usize),
    /// If the comparison holds, the first number of instructions on, else the second.
    Branch(Comparison, Operand, [usize; 2]),
    /// Accepts so many bytes.
    Return(u32),
    /// Accepts as many bytes as A says.
    ReturnA,
    XFromA,
    AFromX,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Constant(u32),
    Memory(usize),
    Length,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operand {
    Constant(u32),
    X,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Or,
    And,
    ShiftLeft,
    ShiftRight,
    Mod,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Greater,
    NotLess,
    AnyBit,
}

impl Program {
    /// Checks a program.
    pub fn new(code: &[Instruction]) -> Result<Self, ProgramError> {
        if code.is_empty() {
            return Err(ProgramError::Empty);
        }
        if code.len() > MAX_INSTRUCTIONS {
            return Err(ProgramError::TooLong);
        }
        let mut ops = Vec::with_capacity(code.len());
        for (i, instruction) in code.iter().enumerate() {
            let invalid = ProgramError::Invalid(i, *instruction);
            let op = Op::new(*instruction).ok_or(invalid)?;
            let behind = code.len() - i - 1;
            let fits = match op {
                Op::Jump(n) => n < behind,
                Op::Branch(_, _, [yes, no]) => yes < behind && no < behind,
                _ => true,
            };
            if !fits {
                return Err(ProgramError::Jump(i));
            }
            ops.push(op);
        }
        match ops.last() {
            Some(Op::Return(_) | Op::ReturnA) => Ok(Self(ops)),
            _ => Err(ProgramError::NoReturn),
        }
    }

    /// How many bytes of a frame are accepted; 0 if it is refused. A program that reads past the end of the frame or divides by 0
    /// refuses it.
    pub fn run(&self, frame: &View<'_>) -> u32 {
        self.execute(frame).unwrap_or(0)
    }

    fn execute(&self, frame: &View<'_>) -> Option<u32> {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; MEMORY];
        let mut at = 0;
        loop {
            let op = *self.0.get(at)?;
            at += 1;
            match op {
                Op::LoadAbsolute(size, offset) => a = frame.number(offset, size)?,
                Op::LoadIndirect(size, offset) => a = frame.number(x.checked_add(offset)?, size)?,
                Op::Load(source) => a = source.value(&memory, frame),
                Op::LoadX(source) => x = source.value(&memory, frame),
                Op::LoadHeaderLength(offset) => x = 4 * (frame.number(offset, 1)? & 0xf),
                Op::Store(slot) => memory[slot] = a,
                Op::StoreX(slot) => memory[slot] = x,
                Op::Compute(arithmetic, operand) => a = arithmetic.apply(a, operand.value(x))?,
                Op::Negate => a = a.wrapping_neg(),
                Op::Jump(n) => at += n,
                Op::Branch(comparison, operand, to) => {
                    let holds = comparison.holds(a, operand.value(x));
                    at += to[usize::from(!holds)];
                }
                Op::Return(bytes) => return Some(bytes),
                Op::ReturnA => return Some(a),
                Op::XFromA => x = a,
                Op::AFromX => a = x,
            }
        }
    }
}

impl Op {
    /// What an instruction means. The opcode is class, size or operation, and mode or source, as `<linux/bpf_common.h>` has them.
    fn new(Instruction(code, jt, jf, k): Instruction) -> Option<Self> {
        let slot = || Some(k as usize).filter(|slot| *slot < MEMORY);
        let operand = if code & 0x08 == 0 {
            Operand::Constant(k)
        } else {
            Operand::X
        };
        Some(match code {
            0x20 => Self::LoadAbsolute(4, k),
            0x28 => Self::LoadAbsolute(2, k),
            0x30 => Self::LoadAbsolute(1, k),
            0x40 => Self::LoadIndirect(4, k),
            0x48 => Self::LoadIndirect(2, k),
            0x50 => Self::LoadIndirect(1, k),
            0x00 => Self::Load(Source::Constant(k)),
            0x60 => Self::Load(Source::Memory(slot()?)),
            0x80 => Self::Load(Source::Length),
            0x01 => Self::LoadX(Source::Constant(k)),
            0x61 => Self::LoadX(Source::Memory(slot()?)),
            0x81 => Self::LoadX(Source::Length),
            0xb1 => Self::LoadHeaderLength(k),
            0x02 => Self::Store(slot()?),
            0x03 => Self::StoreX(slot()?),
            0x84 => Self::Negate,
            0x05 => Self::Jump(k as usize),
            0x06 => Self::Return(k),
            0x16 => Self::ReturnA,
            0x07 => Self::XFromA,
            0x87 => Self::AFromX,
            _ if code & 0x07 == 0x04 => {
                let arithmetic = Arithmetic::new(code & !0x0f)?;
                arithmetic.may_have(operand).then_some(())?;
                Self::Compute(arithmetic, operand)
            }
            _ if code & 0x07 == 0x05 => {
                let to = [jt.into(), jf.into()];
                Self::Branch(Comparison::new(code & !0x0f)?, operand, to)
            }
            _ => return None,
        })
    }
}

impl Source {
    fn value(self, memory: &[u32; MEMORY], frame: &View<'_>) -> u32 {
        match self {
            Self::Constant(k) => k,
            Self::Memory(slot) => memory[slot],
            Self::Length => frame.length(),
        }
    }
}

impl Operand {
    fn value(self, x: u32) -> u32 {
        match self {
            Self::Constant(k) => k,
            Self::X => x,
        }
    }
}

impl Arithmetic {
    fn new(operation: u16) -> Option<Self> {
        Some(match operation {
            0x00 => Self::Add,
            0x10 => Self::Sub,
            0x20 => Self::Mul,
            0x30 => Self::Div,
            0x40 => Self::Or,
            0x50 => Self::And,
            0x60 => Self::ShiftLeft,
            0x70 => Self::ShiftRight,
            0x90 => Self::Mod,
            0xa0 => Self::Xor,
            _ => return None,
        })
    }

    fn may_have(self, operand: Operand) -> bool {
        match (self, operand) {
            (Self::Div | Self::Mod, Operand::Constant(k)) => k != 0,
            (Self::ShiftLeft | Self::ShiftRight, Operand::Constant(k)) => k < 32,
            _ => true,
        }
    }

    fn apply(self, a: u32, b: u32) -> Option<u32> {
        match self {
            Self::Add => Some(a.wrapping_add(b)),
            Self::Sub => Some(a.wrapping_sub(b)),
            Self::Mul => Some(a.wrapping_mul(b)),
            Self::Div => a.checked_div(b),
            Self::Or => Some(a | b),
            Self::And => Some(a & b),
            // Shifting everything out leaves nothing.
            Self::ShiftLeft => Some(a.checked_shl(b).unwrap_or(0)),
            Self::ShiftRight => Some(a.checked_shr(b).unwrap_or(0)),
            Self::Mod => a.checked_rem(b),
            Self::Xor => Some(a ^ b),
        }
    }
}

impl Comparison {
    fn new(operation: u16) -> Option<Self> {
        Some(match operation {
            0x10 => Self::Equal,
            0x20 => Self::Greater,
            0x30 => Self::NotLess,
            0x40 => Self::AnyBit,
            _ => return None,
        })
    }

    fn holds(self, a: u32, b: u32) -> bool {
        match self {
            Self::Equal => a == b,
            Self::Greater => a > b,
            Self::NotLess => a >= b,
            Self::AnyBit => a & b != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use Instruction as I;

    const ACCEPT: Instruction = I(0x06, 0, 0, 262_144);
    const REFUSE: Instruction = I(0x06, 0, 0, 0);

    fn run(code: &[Instruction], frame: &[u8]) -> u32 {
        Program::new(code).unwrap().run(&View::of(frame))
    }

    /// What `tcpdump -ddd 'udp dst port 53'` printed for IPv4.
    #[test]
    fn a_compiled_program() {
        let code = [
            I(40, 0, 0, 12),
            I(21, 0, 8, 2048),
            I(48, 0, 0, 23),
            I(21, 0, 6, 17),
            I(40, 0, 0, 20),
            I(69, 4, 0, 8191),
            I(177, 0, 0, 14),
            I(72, 0, 0, 16),
            I(21, 0, 1, 53),
            ACCEPT,
            REFUSE,
        ];
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x46;
        frame[23] = 17;
        frame[40..42].copy_from_slice(&[0, 53]);
        assert_eq!(run(&code, &frame), 262_144);
        frame[41] = 54;
        assert_eq!(run(&code, &frame), 0);
        assert_eq!(run(&code, &frame[..41]), 0, "reads past the end");
    }

    #[test]
    fn arithmetic_and_memory() {
        let frame = [7; 10];
        let x_is = |x, code: &[Instruction]| {
            let mut all = vec![I(0x01, 0, 0, x)];
            all.extend_from_slice(code);
            run(&all, &frame)
        };
        // A = 100, memory[3] = A, A = len, A -= X, X = memory[3], A *= X.
        let code = [
            I(0x00, 0, 0, 100),
            I(0x02, 0, 0, 3),
            I(0x80, 0, 0, 0),
            I(0x1c, 0, 0, 0),
            I(0x61, 0, 0, 3),
            I(0x2c, 0, 0, 0),
            I(0x16, 0, 0, 0),
        ];
        assert_eq!(x_is(4, &code), 600);
        let divide = [I(0x00, 0, 0, 9), I(0x3c, 0, 0, 0), I(0x16, 0, 0, 0)];
        assert_eq!(x_is(2, &divide), 4);
        assert_eq!(x_is(0, &divide), 0, "division by 0");
        let shift = [I(0x00, 0, 0, 9), I(0x6c, 0, 0, 0), I(0x16, 0, 0, 0)];
        assert_eq!((x_is(1, &shift), x_is(32, &shift)), (18, 0));
    }

    #[test]
    fn what_is_refused() {
        use ProgramError::{Empty, Invalid, Jump, NoReturn, TooLong};
        let refused = |code: &[Instruction]| Program::new(code).unwrap_err();
        assert_eq!(refused(&[]), Empty);
        assert_eq!(refused(&vec![ACCEPT; MAX_INSTRUCTIONS + 1]), TooLong);
        assert_eq!(refused(&[I(0x00, 0, 0, 1)]), NoReturn);
        for bad in [
            I(0xffff, 0, 0, 0),
            I(0x02, 0, 0, 16),
            I(0x60, 0, 0, 16),
            I(0x34, 0, 0, 0),
            I(0x64, 0, 0, 32),
            I(0x94, 0, 0, 0),
        ] {
            assert_eq!(refused(&[bad, ACCEPT]), Invalid(0, bad));
        }
        for jump in [I(0x05, 0, 0, 1), I(0x05, 0, 0, u32::MAX), I(0x15, 0, 1, 0)] {
            assert_eq!(refused(&[jump, ACCEPT]), Jump(0));
        }
    }

    proptest! {
        /// Whatever is accepted ends, and reads nothing it must not.
        #[test]
        fn any_program_is_harmless(
            code in prop::collection::vec((prop::sample::select(vec![
                0x20u16, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x60, 0x80, 0x01, 0x61, 0x81, 0xb1, 0x02, 0x03, 0x84, 0x05, 0x06,
                0x16, 0x07, 0x87, 0x04, 0x0c, 0x34, 0x3c, 0x64, 0x6c, 0x9c, 0x15, 0x1d, 0x25, 0x35, 0x45,
            ]), 0u8..8, 0u8..8, prop_oneof![0u32..70, any::<u32>()]), 0..40),
            frame in prop::collection::vec(any::<u8>(), 14..70),
        ) {
            let mut code: Vec<_> = code.into_iter().map(|(c, t, f, k)| I(c, t, f, k)).collect();
            code.push(ACCEPT);
            if let Ok(program) = Program::new(&code) {
                program.run(&View::of(&frame));
            }
        }
    }
}
