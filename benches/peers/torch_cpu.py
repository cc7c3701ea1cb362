#!/usr/bin/env python3
"""Time the sparse MoE blocks of Hugging Face transformers on the CPU.

The baseline for this crate's CPU numbers: the blocks that a PyTorch user runs, with the shapes of released models and random weights, under each
experts implementation that transformers has for the CPU.

    python3 -m venv venv
    venv/bin/pip install torch==2.11.0 transformers==5.23.0
    venv/bin/python benches/peers/torch_cpu.py                                   # everything; 8 GB of memory
    venv/bin/python benches/peers/torch_cpu.py --model mixtral --dtype bf16      # one block at a time
    venv/bin/python benches/peers/torch_cpu.py --tokens 1 16 --csv results.csv   # rows are appended to the file

Run it on an idle machine. A call is the whole block: router, top-k, experts, weighted sum. Calls take turns over several inputs, so that a call at one
token reads experts that the calls just before it did not leave in the cache.

    GFLOP/s  6 * T * K * H * I / median time (multiply-adds of the experts; the router is not counted)
    GB/s     bytes of the weights of the experts that a call uses, each counted once / median time; the mean over the inputs
    others   share of the machine's CPU time that other processes took meanwhile; measure again unless it is near 0
    diff     ||y - y_eager|| / ||y_eager|| on the first input
    *        the implementation with the lowest median
"""

import argparse
import csv
import os
import statistics
import sys
import time

import torch
import transformers
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

# name: block, config, (H, I, E, K), the config's key for I, other keys
MODELS = {
    "mixtral": (MixtralSparseMoeBlock, MixtralConfig, (4096, 14336, 8, 2), "intermediate_size", {}),
    "qwen3_moe": (Qwen3MoeSparseMoeBlock, Qwen3MoeConfig, (2048, 768, 128, 8), "moe_intermediate_size", {"norm_topk_prob": True}),
    "olmoe": (OlmoeSparseMoeBlock, OlmoeConfig, (2048, 1024, 64, 8), "intermediate_size", {"norm_topk_prob": False}),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
COLUMNS = ("model", "H", "I", "E", "K", "dtype", "tokens", "implementation", "best", "median_ms", "min_ms", "max_ms", "repeats", "gflops", "gb_per_s",
           "experts_used", "others", "diff", "threads", "torch", "transformers", "cpu")


def cpu_name():
    """Model name and the vector extensions that matter here (Linux; else the machine's own word)."""
    try:
        with open("/proc/cpuinfo") as f:
            info = dict(line.split(":", 1) for line in f.read().split("\n\n")[0].replace("\t", "").splitlines() if ":" in line)
        flags = info.get("flags", "").split()
        return " ".join([info.get("model name", "unknown").strip(), *(f for f in CPU_FLAGS if f in flags)])
    except OSError:
        return os.uname().machine


def busy_seconds():
    """CPU seconds used so far: (by the whole machine, by this process); the first is nan where /proc is missing."""
    own = os.times()
    try:
        with open("/proc/stat") as f:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, f.readline().split()[1:9])
    except OSError:
        return float("nan"), own.user + own.system
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def build(model, dtype, seed):
    """The block with N(0, 0.02) weights, in inference mode, and its config (the experts read the implementation from it at each call)."""
    block_class, config_class, (h, i, e, k), i_name, more = MODELS[model]
    config = config_class(hidden_size=h, num_experts_per_tok=k, num_local_experts=e, **{i_name: i}, **more)
    assert (config.num_local_experts, config.num_experts) == (e, e)
    with torch.device("meta"):
        block = block_class(config)
    block = block.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in block.parameters():
        # in pieces: a sample in the wider type, then rounded
        for piece in p.view(-1).split(1 << 24):
            piece.copy_(torch.empty(piece.shape).normal_(0.0, 0.02, generator=generator))
    assert tuple(block.experts.gate_up_proj.shape) == (e, 2 * i, h) and tuple(block.experts.down_proj.shape) == (e, h, i)
    return block, block.experts.config


def experts_used(block, x):
    """How many distinct experts the router sends the tokens of x to."""
    return block.gate(x.view(-1, x.shape[-1]))[2].unique().numel()


def measure(block, inputs, warm_ups, repeats, seconds, limit):
    """Seconds of each call, and the share of the CPU that others took.

    At least `repeats` calls and `seconds` in all, but stop past `limit` seconds once there are three.
    """
    for i in range(warm_ups):
        block(inputs[i % len(inputs)])
    times = []
    machine, own = busy_seconds()
    start = time.perf_counter()
    while True:
        x = inputs[(warm_ups + len(times)) % len(inputs)]
        begin = time.perf_counter()
        block(x)
        end = time.perf_counter()
        times.append(end - begin)
        if len(times) >= repeats and end - start >= seconds or len(times) >= 3 and end - start >= limit:
            machine_end, own_end = busy_seconds()
            others = (machine_end - machine - (own_end - own)) / (end - start) / os.cpu_count()
            return times, max(others, 0.0)


def bench(model, dtype_name, args):
    """One row (a dict by COLUMNS) per number of tokens and implementation."""
    dtype = DTYPES[dtype_name]
    h, i, e, k = MODELS[model][2]
    block, config = build(model, dtype, args.seed)
    generator = torch.Generator().manual_seed(args.seed + 1)
    rows = []
    for tokens in args.tokens:
        count = args.inputs if tokens < 64 else min(args.inputs, 4)
        inputs = [torch.empty(1, tokens, h).normal_(generator=generator).to(dtype) for _ in range(count)]
        used = statistics.mean(experts_used(block, x) for x in inputs)
        config._experts_implementation = "eager"
        reference = block(inputs[0]).double()
        group = []
        for implementation in args.impl:
            if implementation == "batched_mm" and tokens > args.batched_max_tokens:
                continue  # it copies the weights of K experts for every token
            config._experts_implementation = implementation
            diff = ((block(inputs[0]).double() - reference).norm() / reference.norm()).item()
            times, others = measure(block, inputs, args.warm_ups, args.repeats, args.seconds, args.limit)
            median = statistics.median(times)
            group.append(dict(
                model=model, H=h, I=i, E=e, K=k, dtype=dtype_name, tokens=tokens, implementation=implementation, best="",
                median_ms=median * 1e3, min_ms=min(times) * 1e3, max_ms=max(times) * 1e3, repeats=len(times),
                gflops=6 * tokens * k * h * i / median / 1e9, gb_per_s=used * 3 * h * i * dtype.itemsize / median / 1e9,
                experts_used=used, others=others, diff=diff, threads=torch.get_num_threads(), torch=torch.__version__,
                transformers=transformers.__version__, cpu=args.cpu,
            ))
        if group:
            min(group, key=lambda row: row["median_ms"])["best"] = "*"
        rows += group
    return rows


def print_table(rows):
    head = ("model", "dtype", "T", "implementation", "", "median ms", "min", "max", "n", "GFLOP/s", "GB/s", "experts", "others", "diff")
    body = [(r["model"], r["dtype"], str(r["tokens"]), r["implementation"], r["best"], f"{r['median_ms']:.3f}", f"{r['min_ms']:.3f}",
             f"{r['max_ms']:.3f}", str(r["repeats"]), f"{r['gflops']:.1f}", f"{r['gb_per_s']:.2f}", f"{r['experts_used']:.1f}", f"{r['others']:.0%}",
             f"{r['diff']:.1e}")
            for r in rows]
    widths = [max(len(line[c]) for line in [head, *body]) for c in range(len(head))]
    for line in [head, *body]:
        cells = (cell.ljust(w) if c in (0, 1, 3, 4) else cell.rjust(w) for c, (cell, w) in enumerate(zip(line, widths)))
        print("  ".join(cells).rstrip())


def append_csv(path, rows):
    new = not os.path.exists(path) or os.path.getsize(path) == 0
    with open(path, "a", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({c: f"{v:.6g}" if isinstance(v, float) else v for c, v in row.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="which blocks (default: all)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="which number types (default: both)")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 512], metavar="T", help="tokens a call (default: 1 512)")
    parser.add_argument("--impl", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS), help="experts implementations (default: all)")
    parser.add_argument("--batched-max-tokens", type=int, default=1, metavar="T", help="leave batched_mm out above T tokens (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--inputs", type=int, default=32, help="inputs to take turns over; at most 4 from 64 tokens on (default: 32)")
    parser.add_argument("--warm-ups", type=int, default=2, help="calls before the timed ones (default: 2)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls, at least (default: 10)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for the timed calls, at least (default: 3)")
    parser.add_argument("--limit", type=float, default=60.0, help="past these seconds three timed calls are enough (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", metavar="FILE", help="append the rows to FILE as CSV")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    args.cpu = cpu_name()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads, "
          f"{torch.backends.cpu.get_cpu_capability()} kernels; {args.cpu}", file=sys.stderr)
    rows = []
    with torch.inference_mode():
        for model in args.model:
            for dtype_name in args.dtype:
                new = bench(model, dtype_name, args)
                if args.csv:
                    append_csv(args.csv, new)
                rows += new
    print_table(rows)


if __name__ == "__main__":
    main()
