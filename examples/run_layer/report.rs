//! What is printed: a report for people, one line of JSON for programs.

use std::fmt;

use moe_kernels::MoeConfig;
use moe_kernels::element::DType;
use serde_json::json;

use crate::check::Check;

/// A bar for each expert up to this many; above, one character for each.
const MAX_BARS: usize = 32;
const BAR_WIDTH: usize = 40;
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub struct Report<'a> {
    pub family: &'static str,
    /// The name of a named model.
    pub model: Option<&'static str>,
    pub backend: &'static str,
    /// Which kernels: hopper or portable; none on the CPU.
    pub path: Option<&'static str>,
    /// The kernels of one forward, in order; none on the CPU.
    pub kernels: &'a [String],
    /// The warps' wgmma instructions, where somebody counts.
    pub wgmmas: Option<u64>,
    pub dtype: DType,
    pub num_tokens: usize,
    pub config: &'a MoeConfig,
    pub weight_bytes: usize,
    pub tokens_per_expert: &'a [u32],
    pub seconds: Vec<f64>,
    pub check: &'a Check,
}

impl Report<'_> {
    fn sorted_seconds(&self) -> Vec<f64> {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    fn median_seconds(&self) -> f64 {
        self.sorted_seconds()[self.seconds.len() / 2]
    }

    pub fn json(&self) -> String {
        let MoeConfig { hidden_size, intermediate_size, num_experts, top_k, .. } = self.config;
        json!({
            "family": self.family,
            "model": self.model,
            "backend": self.backend,
            "path": self.path,
            "dtype": self.dtype,
            "T": self.num_tokens,
            "H": hidden_size,
            "I": intermediate_size,
            "E": num_experts,
            "K": top_k,
            "selection_exact": self.check.selection_exact,
            "output_rel_l2": self.check.output,
            "logits_rel_l2": self.check.logits,
            "weights_rel_l2": self.check.weights,
            "seconds": self.median_seconds(),
            "tokens_per_expert": self.tokens_per_expert,
            "kernels": self.kernels,
            "wgmmas": self.wgmmas,
        })
        .to_string()
    }

    fn fmt_layer(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.config;
        let element = self.dtype.size() as f64;
        let name = self.model.unwrap_or(self.family);
        writeln!(f, "{name} on {} in {}", self.backend, self.dtype)?;
        writeln!(
            f,
            "  shape      T {}, H {}, I {}, E {}, K {}",
            self.num_tokens,
            config.hidden_size,
            config.intermediate_size,
            config.num_experts,
            config.top_k
        )?;
        let (total, active) = (config.parameters() as f64, config.active_parameters() as f64);
        writeln!(f, "  total      {} parameters, {}", si(total, ""), si(total * element, "B"))?;
        writeln!(f, "  active     {} parameters, {}", si(active, ""), si(active * element, "B"))?;
        writeln!(f, "  in memory  {}", si(self.weight_bytes as f64, "B"))
    }

    fn fmt_load(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.tokens_per_expert;
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        writeln!(f, "\ntokens per expert")?;
        if counts.len() <= MAX_BARS {
            for (expert, &count) in counts.iter().enumerate() {
                let length = (count as usize * BAR_WIDTH).div_ceil(most as usize);
                writeln!(f, "  {expert:>3}  {:<BAR_WIDTH$}  {count}", "█".repeat(length))?;
            }
            return Ok(());
        }
        for (line, counts) in counts.chunks(64).enumerate() {
            let height = |count: u32| EIGHTHS[(count as usize * 8).div_ceil(most as usize)];
            let bars: String = counts.iter().map(|&count| height(count)).collect();
            writeln!(f, "  {:>4} {bars}", line * 64)?;
        }
        let idle = counts.iter().filter(|&&count| count == 0).count();
        let rows: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        let mean = rows as f64 / counts.len() as f64;
        writeln!(f, "       mean {mean:.1}, most {most}, experts without a token {idle}")
    }

    fn fmt_kernels(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kernels.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nkernels")?;
        for kernel in self.kernels {
            writeln!(f, "  {kernel}")?;
        }
        match self.wgmmas {
            Some(count) => writeln!(f, "  wgmma instructions of all warps: {count}"),
            None => Ok(()),
        }
    }

    fn fmt_speed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.config;
        let rows: u64 = self.tokens_per_expert.iter().map(|&count| u64::from(count)).sum();
        let hit = self.tokens_per_expert.iter().filter(|&&count| count > 0).count();
        let flop = 2.0 * rows as f64 * config.expert_parameters() as f64;
        let elements = hit as u64 * config.expert_parameters()
            + 2 * (self.num_tokens * config.hidden_size) as u64;
        let bytes = elements as f64 * self.dtype.size() as f64;
        let seconds = self.sorted_seconds();
        let median = self.median_seconds();
        write!(f, "\ntime         {:.3} ms", median * 1e3)?;
        if let [first, .., last] = seconds[..] {
            let (first, last, runs) = (first * 1e3, last * 1e3, seconds.len());
            write!(f, " (median of {runs}, {first:.3} to {last:.3})")?;
        }
        writeln!(f)?;
        writeln!(f, "  compute    {}", si(flop / median, "FLOP/s"))?;
        writeln!(f, "  memory     {} ({hit} experts' weights, tokens)", si(bytes / median, "B/s"))
    }

    fn fmt_check(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = self.check;
        let errors = [
            ("output", check.output),
            ("router logits", check.logits),
            ("combine weights", check.weights),
        ];
        if check.selection_exact.is_none() && errors.iter().all(|(_, error)| error.is_none()) {
            return writeln!(f, "\nnothing stored to compare with");
        }
        writeln!(f, "\nagainst the stored results (tolerance {:.0e})", check.tolerance)?;
        if let Some(exact) = check.selection_exact {
            let verdict = if exact { "exact" } else { "WRONG" };
            writeln!(f, "  {:<16} {verdict}", "selection")?;
        }
        for (name, error) in errors {
            if let Some(error) = error {
                let verdict = if error <= check.tolerance { "ok" } else { "OUTSIDE" };
                writeln!(f, "  {name:<16} relative L2 {error:.2e}  {verdict}")?;
            }
        }
        writeln!(f, "{}", if check.passed() { "passed" } else { "FAILED" })
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_layer(f)?;
        self.fmt_load(f)?;
        self.fmt_kernels(f)?;
        self.fmt_speed(f)?;
        self.fmt_check(f)
    }
}

/// `1.41 GB`, with decimal prefixes.
fn si(value: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P"];
    let step = (value.max(1.0).log10() / 3.0) as usize;
    let step = step.min(prefixes.len() - 1);
    format!("{:.2} {}{unit}", value / 1000f64.powi(step as i32), prefixes[step])
}
