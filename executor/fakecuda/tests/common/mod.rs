//! A device of the interpreter, without the driver API around it.

#![allow(dead_code, reason = "each test file uses a part")]

use fakecuda::ptx::{self, Fault, Kernel, Launch, Memory, Order};

/// A kernel argument.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// A device pointer.
    P(u64),
    /// An integer.
    I(i32),
    /// A float.
    F(f32),
}

/// Memory and kernels.
pub struct Device {
    pub memory: Memory,
    kernels: Vec<Kernel>,
    pub order: Order,
    pub instructions: u64,
}

impl Device {
    pub fn new(sources: &[&str]) -> Self {
        let parse = |s: &&str| ptx::parse(s).unwrap_or_else(|e| panic!("{e}"));
        Device {
            memory: Memory::default(),
            kernels: sources.iter().flat_map(parse).collect(),
            order: Order::default(),
            instructions: 0,
        }
    }

    pub fn upload(&mut self, data: &[f32]) -> u64 {
        let at = self.memory.alloc(data.len() * 4);
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(self.memory.write(at, &bytes));
        at
    }

    pub fn upload_ints(&mut self, data: &[i32]) -> u64 {
        self.upload(&data.iter().map(|x| f32::from_bits(*x as u32)).collect::<Vec<_>>())
    }

    pub fn empty(&mut self, len: usize) -> u64 {
        self.memory.alloc(len * 4)
    }

    pub fn download(&self, at: u64, len: usize) -> Vec<f32> {
        let mut bytes = vec![0; len * 4];
        assert!(self.memory.read(at, &mut bytes));
        bytes.chunks(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    }

    pub fn try_run(&mut self, name: &str, grid: [u32; 3], block: [u32; 3], args: &[Arg]) -> Result<(), Box<Fault>> {
        let kernel = self.kernels.iter().find(|k| k.name == name).unwrap_or_else(|| panic!("no kernel {name}"));
        assert_eq!(kernel.params.len(), args.len(), "arguments of {name}");
        let mut params = vec![0u8; kernel.param_bytes];
        for ((offset, size), arg) in kernel.params.iter().zip(args) {
            let bytes: Vec<u8> = match arg {
                Arg::P(x) => x.to_le_bytes().to_vec(),
                Arg::I(x) => x.to_le_bytes().to_vec(),
                Arg::F(x) => x.to_le_bytes().to_vec(),
            };
            assert_eq!(bytes.len(), *size, "argument of {name}");
            params[*offset..offset + size].copy_from_slice(&bytes);
        }
        let launch =
            Launch { grid, block, dynamic_shared: 0, params: &params, order: self.order, instruction_limit: 1_000_000 };
        let stats = ptx::launch(kernel, launch, &mut self.memory)?;
        self.instructions += stats.instructions;
        Ok(())
    }

    pub fn run(&mut self, name: &str, grid: [u32; 3], block: [u32; 3], args: &[Arg]) {
        self.try_run(name, grid, block, args).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Numbers between -1 and 1 that differ with `seed`.
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

/// Largest difference relative to the size of what is expected, at least 1.
pub fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (x, y)) in got.iter().zip(want).enumerate() {
        assert!((x - y).abs() <= tolerance * y.abs().max(1.0), "{what}: element {i} is {x}, not {y}");
    }
}

/// Blocks of `per` that cover `n`.
pub fn over(n: usize, per: usize) -> u32 {
    n.div_ceil(per) as u32
}
