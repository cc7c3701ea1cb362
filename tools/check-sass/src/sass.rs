//! The machine code of a kernel, as `cuobjdump -sass` prints it.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// One instruction.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Its place in the kernel, in bytes.
    pub address: u32,
    /// Its text, without the guard.
    pub text: String,
    /// Whether it has a guard (`@P0`), so that it may not happen.
    pub guarded: bool,
}

impl Instruction {
    /// `HGMMA` of `HGMMA.64x256x16.F32.BF16`.
    pub fn opcode(&self) -> &str {
        self.text.split(['.', ' ']).next().unwrap_or("")
    }

    /// Asynchronous products of a warpgroup.
    pub fn is_wgmma(&self) -> bool {
        matches!(self.opcode(), "HGMMA" | "QGMMA" | "IGMMA" | "BGMMA")
    }

    /// The registers of operand A of such a product, if it lies in registers.
    fn operand_a(&self) -> Option<Range<u32>> {
        let (_, operands) = self.text.split_once(' ')?;
        let a = operands.split(", ").nth(1).filter(|_| self.is_wgmma())?;
        register(a).map(|first| first..first + 4)
    }

    /// The general registers that it writes.
    fn writes(&self) -> Option<Range<u32>> {
        let reads_only = [
            "ST",
            "RED",
            "BAR",
            "SYNCS",
            "BRA",
            "UTMA",
            "UBLK",
            "LDGSTS",
            "WARPGROUP",
            "EXIT",
            "CCTL",
            "R2P",
        ];
        let sets_predicates = self.opcode().ends_with("SETP") || self.opcode().ends_with("SETP2");
        if self.is_wgmma()
            || sets_predicates
            || reads_only.iter().any(|op| self.text.starts_with(op))
        {
            return None;
        }
        let (mnemonic, operands) = self.text.split_once(' ')?;
        let first = operands.split(", ").find(|operand| !is_predicate(operand))?;
        let first = register(first)?;
        let has = |modifier: &str| mnemonic.split('.').any(|part| part == modifier);
        let width = match self.opcode() {
            "LDSM" if has("4") => 4,
            "LDSM" if has("2") => 2,
            "HMMA" | "IMMA" | "QMMA" => 4,
            _ if has("128") => 4,
            _ if has("64") || has("WIDE") => 2,
            _ => 1,
        };
        Some(first..first + width)
    }

    /// Where it may go on, besides the next instruction.
    fn target(&self) -> Option<u32> {
        let jumps = ["BRA", "JMP", "CALL", "BSSY"].contains(&self.opcode());
        let (_, hex) = self.text.rsplit_once("0x").filter(|_| jumps)?;
        u32::from_str_radix(hex.trim(), 16).ok()
    }

    /// A branch with an operand before its address (`BRA.U UP0, 0x30`) may not be taken.
    fn falls_through(&self) -> bool {
        let leaves = matches!(self.opcode(), "BRA" | "JMP" | "EXIT" | "RET");
        self.guarded || !leaves || self.text.contains(',')
    }
}

fn is_predicate(operand: &str) -> bool {
    let name = operand.trim_start_matches('!').trim_start_matches('U');
    name.strip_prefix('P').is_some_and(|rest| rest == "T" || rest.parse::<u32>().is_ok())
}

/// The number of `R12`, `R12.reuse` or `-R12`.
fn register(operand: &str) -> Option<u32> {
    operand.strip_prefix('R')?.split('.').next()?.parse().ok()
}

/// A kernel's machine code for one architecture.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// `sm_90a`.
    pub arch: String,
    /// In order.
    pub code: Vec<Instruction>,
}

/// The kernels in what `cuobjdump -sass` prints.
pub fn parse(listing: &str) -> Vec<Kernel> {
    let (mut kernels, mut arch) = (Vec::new(), "");
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("code for ") {
            arch = name;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            let (name, arch) = (name.to_owned(), arch.to_owned());
            kernels.push(Kernel { name, arch, code: Vec::new() });
        } else if let (Some(kernel), Some(instruction)) = (kernels.last_mut(), instruction(line)) {
            kernel.code.push(instruction);
        }
    }
    kernels
}

/// `/*05b0*/  @P0 IADD3 R4, R5, R6, RZ ;  /* encoding */`
fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let (text, _) = rest.split_once(';')?;
    let text = text.trim().trim_start_matches('{').trim();
    let (guarded, text) = match text.strip_prefix('@') {
        Some(guard) => (true, guard.split_once(' ')?.1),
        None => (false, text),
    };
    Some(Instruction { address, text: text.trim().to_owned(), guarded })
}

/// A register of operand A that is overwritten while a product may still read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hazard {
    /// The product's address.
    pub product: u32,
    /// The overwriting instruction's.
    pub address: u32,
    /// And its text.
    pub text: String,
}

/// More in flight is a loop without waits: the oldest are forgotten, or they would pile up for ever.
const MOST_GROUPS: usize = 6;

/// Products in flight: groups, the oldest first, the last still open; of each product its address and
/// the registers of A.
type InFlight = Vec<Vec<(u32, Range<u32>)>>;

/// Follows every path through the kernel. A product is in flight from its instruction to a
/// `WARPGROUP.DEPBAR` that covers its group; groups end with `gsb0`. With `heed_waits` false no wait is
/// believed: what is found then shows that there was something to find.
pub fn register_operand_hazards(kernel: &Kernel, heed_waits: bool) -> Vec<Hazard> {
    if !kernel.code.iter().any(|instruction| instruction.operand_a().is_some()) {
        return Vec::new();
    }
    let index: BTreeMap<u32, usize> =
        kernel.code.iter().enumerate().map(|(i, instruction)| (instruction.address, i)).collect();
    let mut found = BTreeMap::new();
    let mut seen: HashSet<(usize, InFlight)> = HashSet::new();
    let mut paths = vec![(0, vec![Vec::new()])];
    while let Some((mut at, mut groups)) = paths.pop() {
        while let Some(instruction) = kernel.code.get(at) {
            step(instruction, heed_waits, &mut groups, &mut found);
            let target = instruction.target().and_then(|address| index.get(&address)).copied();
            if let Some(target) = target
                && seen.insert((target, groups.clone()))
            {
                paths.push((target, groups.clone()));
            }
            at += 1;
            if !instruction.falls_through()
                || (target.is_some() && !seen.insert((at, groups.clone())))
            {
                break;
            }
        }
    }
    found.into_values().collect()
}

fn step(
    instruction: &Instruction,
    heed_waits: bool,
    groups: &mut InFlight,
    found: &mut BTreeMap<(u32, u32), Hazard>,
) {
    if let Some(written) = instruction.writes() {
        for (product, a) in groups.iter().flatten() {
            if a.start < written.end && written.start < a.end {
                let (address, text) = (instruction.address, instruction.text.clone());
                found.entry((*product, address)).or_insert(Hazard {
                    product: *product,
                    address,
                    text,
                });
            }
        }
    }
    if instruction.is_wgmma() {
        let open = groups.last_mut().expect("there is always an open group");
        if let Some(a) = instruction.operand_a() {
            let product = (instruction.address, a);
            if !open.contains(&product) {
                open.push(product);
            }
        }
        if instruction.text.ends_with("gsb0") {
            groups.push(Vec::new());
        }
        if groups.len() > MOST_GROUPS {
            groups.remove(0);
        }
    } else if heed_waits && let Some((_, left)) = instruction.text.split_once("DEPBAR.LE gsb0, 0x")
    {
        let left = usize::from_str_radix(left.trim(), 16).unwrap_or(0);
        let done = (groups.len() - 1).saturating_sub(left);
        groups.drain(..done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(lines: &[&str]) -> Kernel {
        let mut listing = "code for sm_90a\n\tFunction : k\n".to_owned();
        for (i, line) in lines.iter().enumerate() {
            listing +=
                &format!("        /*{:04x}*/                   {line} ;  /* 0x0 */\n", i * 16);
        }
        parse(&listing).remove(0)
    }
    const PRODUCT: &str = "HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0";

    #[test]
    fn listings_are_read() {
        let listing = "Fatbin elf code:\n================\narch = sm_90a\n\n\tcode for sm_90a\n\t\t\
            Function : first\n\t.headerflags\t@\"EF\"\n\
            \t/*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x1 */\n\
            \t                                                    /* 0x2 */\n\
            \t/*0010*/              @!P0 BRA 0x30 ;               /* 0x3 */\n\t\t..........\n\n\
            \tcode for sm_80\n\t\tFunction : second\n\t/*0000*/  EXIT ; /* 0x4 */\n";
        let kernels = parse(listing);
        let names: Vec<_> = kernels.iter().map(|k| (k.name.as_str(), k.arch.as_str())).collect();
        assert_eq!(names, [("first", "sm_90a"), ("second", "sm_80")]);
        let [load, branch] = &kernels[0].code[..] else { panic!("{kernels:?}") };
        assert_eq!((load.address, load.opcode(), load.guarded), (0, "LDC", false));
        assert_eq!((branch.address, branch.target(), branch.guarded), (16, Some(0x30), true));
    }

    #[test]
    fn registers_are_known() {
        let writes = |text: &str| kernel(&[text]).code[0].writes();
        assert_eq!(writes("IADD3 R4, P0, R5, R6, RZ"), Some(4..5));
        assert_eq!(writes("IMAD.WIDE.U32 R4, R5, 0x4, R2"), Some(4..6));
        assert_eq!(writes("LDS.128 R8, [R2]"), Some(8..12));
        assert_eq!(writes("LDSM.16.M88.4 R8, [R2]"), Some(8..12));
        assert_eq!(writes("SHFL.IDX PT, R7, R2, RZ, 0x1f"), Some(7..8));
        assert_eq!(writes("@P0 LDG.E.64 R6, desc[UR4][R2.64]"), Some(6..8));
        for reads in [
            "STS.128 [R4], R8",
            "STG.E desc[UR4][R2.64], R7",
            "ISETP.NE.AND P0, PT, R4, RZ, PT",
            "LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64]",
            "UMOV UR4, 0x1",
            "EXIT",
            "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0",
        ] {
            assert_eq!(writes(reads), None, "{reads}");
        }
        assert_eq!(kernel(&[PRODUCT]).code[0].operand_a(), Some(4..8));
        let shared = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0";
        assert_eq!(kernel(&[shared]).code[0].operand_a(), None);
    }

    #[test]
    fn a_register_written_too_early_is_found() {
        let wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0";
        let write = "LDS.64 R6, [R2]";
        let found = |lines: &[&str]| register_operand_hazards(&kernel(lines), true);
        let hazard = Hazard { product: 0, address: 16, text: write.to_owned() };
        assert_eq!(found(&[PRODUCT, write, wait, "EXIT"]), [hazard]);
        assert_eq!(found(&[PRODUCT, wait, write, "EXIT"]), []);
        // Next to the operand, not in it.
        assert_eq!(found(&[PRODUCT, "LDS.64 R8, [R2]", "LDS.64 R2, [R2]", wait, "EXIT"]), []);
        // A wait that leaves one group in flight covers the older one only.
        let next = PRODUCT.replace("R4", "R12");
        let one = "WARPGROUP.DEPBAR.LE gsb0, 0x1";
        assert_eq!(found(&[PRODUCT, &next, one, write, "EXIT"]), []);
        assert_eq!(found(&[&next, PRODUCT, one, write, "EXIT"]).len(), 1);
        // Products without gsb0 belong to the group of the one that has it.
        let first = PRODUCT.replace(", gsb0", "");
        assert_eq!(found(&[&first, &next, one, write, "EXIT"]).len(), 1);
    }

    #[test]
    fn loops_and_branches_are_followed() {
        let found = |lines: &[&str]| register_operand_hazards(&kernel(lines), true).len();
        let wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0";
        let write = "LDS.64 R6, [R2]";
        // Around the loop: the write is before the product in the text, and after it in time.
        assert_eq!(found(&[write, PRODUCT, "@P0 BRA 0x0", wait, "EXIT"]), 1);
        assert_eq!(found(&[write, PRODUCT, wait, "@P0 BRA 0x0", "EXIT"]), 0);
        // One of two ways has no wait.
        assert_eq!(found(&[PRODUCT, "@P0 BRA 0x30", wait, write, "EXIT"]), 1);
        // Nothing leads from the product to the write.
        assert_eq!(found(&["@P0 BRA 0x30", PRODUCT, "EXIT", write, "EXIT"]), 0);
        assert_eq!(found(&["@P0 BRA 0x30", PRODUCT, "BRA 0x40", write, "EXIT"]), 0);
        assert_eq!(found(&["@P0 BRA 0x30", PRODUCT, "BRA.U UP0, 0x40", write, "EXIT"]), 1);
    }

    #[test]
    fn without_waits_correct_code_looks_wrong() {
        let code = kernel(&[PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "MOV R5, RZ", "EXIT"]);
        assert_eq!(register_operand_hazards(&code, true), []);
        assert_eq!(register_operand_hazards(&code, false).len(), 1);
    }
}
