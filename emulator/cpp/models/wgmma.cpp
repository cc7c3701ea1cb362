// wgmma: asynchronous matrix products of a warpgroup (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions").
//
// Each warp is modelled on its own: it owns 16 of the 64 rows and reads all of B.  Operands are read either
// when the operation is issued or as late as the wait, by coin toss; the mathematics runs at the wait, in
// order; accumulators read as poison in between.  Completion is per warp: a warp's wait says nothing of the
// other three (the strict reading of the ISA).
#include "checks/race.h"
#include "models/exit_checks.h"
#include "models/models.h"
#include "models/numeric.h"

namespace emu {
namespace {
constexpr int kRows = 16;                       // of a warp
constexpr int kDepthBytes = 32;                 // of one operation, in every type

struct Accumulator {
  float* key;                                   // lane 0's registers: one C array per accumulator
  int columns, uses = 0;
  float* registers[32];
  std::vector<float> values;                    // [16][columns]
};
struct Op {
  int columns, group;
  Format format;
  bool a_in_registers, a_transposed, b_transposed, accumulate, captured = false;
  uint64_t a_desc, b_desc;
  uint32_t a_regs[32][4];
  std::vector<uint8_t> a, b;                    // [rows][kDepthBytes]
  Accumulator* acc;
  uint32_t agent = 0, pc;
};
}  // namespace
struct WgmmaState {
  std::deque<std::unique_ptr<Op>> ops;
  std::vector<std::unique_ptr<Accumulator>> accumulators;
  std::vector<std::pair<int, Clocks>> clocks;   // of issued operations, by group
  int group = 0;
  bool needs_fence = true;
  uint64_t issued = 0;
};
void WgmmaDeleter::operator()(WgmmaState* s) const { delete s; }
bool wgmma_in_flight(const Warp& w) { return w.wgmma && !w.wgmma->ops.empty(); }
uint64_t wgmmas_issued(const Warp& w) { return w.wgmma ? w.wgmma->issued : 0; }
static WgmmaState& state_of(Warp* w) {
  if (!w->wgmma) w->wgmma.reset(new WgmmaState);
  return *w->wgmma;
}

// ---------------------------------------------------------------- matrix descriptors
namespace {
struct Descriptor { uint32_t addr, leading, stride; int swizzle; };
Descriptor read_descriptor(uint64_t v, const char* which) {
  static const int spans[4] = {0, 128, 64, 32};
  if (v >> 49 & 7) fail(EMU_WGMMA, "wgmma descriptor of %s: a base offset is not modelled (align the tile to its swizzle pattern instead)", which);
  return {(uint32_t)(v & 0x3fff) << 4, (uint32_t)(v >> 16 & 0x3fff) << 4, (uint32_t)(v >> 32 & 0x3fff) << 4, spans[v >> 62]};
}
// The 16-byte chunk that holds row `mn`, bytes [16 chunk, 16 chunk + 16) of K; K-major.
uint32_t k_major_chunk(const Descriptor& d, int mn, int chunk) {
  const uint32_t width = d.swizzle ? (uint32_t)d.swizzle : 16;
  return swizzled(d.addr + (uint32_t)(mn & 7) * width + (uint32_t)(mn >> 3) * d.stride + (uint32_t)chunk * (d.swizzle ? 16 : d.leading), d.swizzle);
}
// The 16-byte chunk that holds elements (mn .. mn + 7, k); MN-major, 16-bit types only.
uint32_t mn_major_chunk(const Descriptor& d, int mn, int k) {
  const uint32_t unit = (uint32_t)mn >> 3;
  if (!d.swizzle) return d.addr + unit * d.stride + (uint32_t)(k & 7) * 16 + (uint32_t)(k >> 3) * d.leading;
  const uint32_t width = (uint32_t)d.swizzle, per = width / 16;
  return swizzled(d.addr + unit % per * 16 + unit / per * d.leading + (uint32_t)(k & 7) * width + (uint32_t)(k >> 3) * d.stride, d.swizzle);
}
// Calls visit(chunk address, row, where its bytes go) for rows [first, first + rows) of an operand.
template <class F> void each_chunk(const Descriptor& d, bool transposed, int first, int rows, F visit) {
  if (!transposed)
    for (int r = 0; r < rows; r++) for (int c = 0; c < kDepthBytes / 16; c++) visit(k_major_chunk(d, first + r, c), r, c);
  else
    for (int r = 0; r < rows; r += 8) for (int k = 0; k < 16; k++) visit(mn_major_chunk(d, first + r, k), r, k);
}
void gather(Block* b, uint64_t desc, const char* which, bool transposed, int first, int rows, uint8_t* out) {
  each_chunk(read_descriptor(desc, which), transposed, first, rows, [&](uint32_t at, int r, int k) {
    const uint8_t* p = shared_bytes_at(b, at, 16, "wgmma operand");
    if (!transposed) memcpy(out + r * kDepthBytes + k * 16, p, 16);
    else for (int e = 0; e < 8; e++) memcpy(out + (r + e) * kDepthBytes + k * 2, p + 2 * e, 2);
  });
}
void record(Block* b, uint64_t desc, const char* which, bool transposed, int first, int rows, const Op& op, const Clocks& clocks) {
  const Descriptor d = read_descriptor(desc, which);
  each_chunk(d, transposed, first, rows, [&](uint32_t at, int, int) {
    shared_bytes_at(b, at, 16, "wgmma operand");
    prefetch_shadow(b, at + d.stride);                // the records are spread too far for the caches
    shared_access(b, op.agent, clocks, at, 16, kAsync, op.pc);
  });
}
int first_row(const Warp* w) { return (w->index & 3) * kRows; }
void capture(Warp* w, Op& op) {
  op.a.resize((size_t)kRows * kDepthBytes);
  op.b.resize((size_t)op.columns * kDepthBytes);
  if (!op.a_in_registers) gather(w->block, op.a_desc, "A", op.a_transposed, first_row(w), kRows, op.a.data());
  gather(w->block, op.b_desc, "B", op.b_transposed, 0, op.columns, op.b.data());
  op.captured = true;
}

// ---------------------------------------------------------------- the product
EMU_WIDE_VECTORS
void multiply(float* acc, const float* a, const float* bt, int depth, int n) {   // acc[16][n] += a[16][depth] bt[depth][n]
  for (int i = 0; i < kRows; i++) {
    float* c = acc + (size_t)i * (size_t)n;
    for (int k = 0; k < depth; k += 4) {
      const float *x = a + i * depth + k, *b = bt + (size_t)k * (size_t)n;
      const float a0 = x[0], a1 = x[1], a2 = x[2], a3 = x[3];
      for (int j = 0; j < n; j++) c[j] += (a0 * b[j] + a1 * b[j + n]) + (a2 * b[j + 2 * n] + a3 * b[j + 3 * n]);
    }
  }
}
void compute(Warp* w, Op& op) {
  if (!op.captured) capture(w, op);
  const int depth = kDepthBytes / bytes_of(op.format), n = op.columns;
  float a[kRows * kDepthBytes];
  if (op.a_in_registers) {
    const int per = 4 / bytes_of(op.format);
    for (int l = 0; l < 32; l++)
      for (int k = 0; k < 4; k++)
        widen(op.format, reinterpret_cast<const uint8_t*>(&op.a_regs[l][k]), a + (l / 4 + (k & 1) * 8) * depth + l % 4 * per + (k >> 1) * (depth / 2), (size_t)per);
  } else {
    widen(op.format, op.a.data(), a, (size_t)(kRows * depth));
  }
  std::vector<float> b((size_t)(n * depth)), bt((size_t)(n * depth));
  widen(op.format, op.b.data(), b.data(), b.size());
  for (int j = 0; j < n; j++) for (int k = 0; k < depth; k++) bt[(size_t)(k * n + j)] = b[(size_t)(j * depth + k)];
  if (!op.accumulate) std::fill(op.acc->values.begin(), op.acc->values.end(), 0.f);
  multiply(op.acc->values.data(), a, bt.data(), depth, n);
  op.acc->uses--;
}
// The registers of an m64nN accumulator: visit(register, row of the warp, column).
template <class F> void each_register(int columns, int lane, F visit) {
  for (int j = 0; j < columns / 8; j++)
    for (int q = 0; q < 4; q++) visit(j * 4 + q, (lane >> 2) + (q >> 1) * 8, j * 8 + (lane & 3) * 2 + (q & 1));
}
Accumulator* open_accumulator(WgmmaState& s, Collective& c, int columns, bool accumulate, float* const* registers) {
  s.accumulators.push_back(std::make_unique<Accumulator>());
  Accumulator* acc = s.accumulators.back().get();
  acc->key = registers[0];
  acc->columns = columns;
  acc->values.assign((size_t)(kRows * columns), 0.f);
  for (int l = 0; l < 32; l++) {
    float* r = acc->registers[l] = registers[l];
    if (accumulate) each_register(columns, l, [&](int i, int row, int col) { acc->values[(size_t)(row * columns + col)] = r[i]; });
    poison(r, (size_t)columns / 2 * 4, kAccumulating);       // not readable until waited for
  }
  (void)c;
  return acc;
}
}  // namespace

// ---------------------------------------------------------------- instructions
// wgmma.mma_async.sync.aligned.m64nNkK.f32.TYPE.TYPE {d}, a, b, p, scale-a, scale-b{{, trans-a}, trans-b}
void model_wgmma(const Instr& i, Frame& f) {
  Fiber* me = self();
  const int n = i.n, registers = n / 2;
  const std::string& type = i.mods[6];
  const Format format = type == "bf16" ? Format::BF16 : type == "f16" ? Format::F16 : type == "e4m3" ? Format::E4M3 : Format::E5M2;
  const bool wide = bytes_of(format) == 2, in_registers = i.count_in_slot(1) == 4;
  const size_t expected = (size_t)registers + (in_registers ? 4 : 1) + 4 + (wide ? (in_registers ? 1 : 2) : 0);
  if (i.mods[7] != type) fail(EMU_PTX, "%s: mixed operand types are not modelled", i.name.c_str());
  if (i.count_in_slot(0) != registers || i.args.size() != expected)
    fail(EMU_PTX, "%s: %zu operands (%d accumulators) where %s has %zu (%d)", f.program->function.c_str(), i.args.size(), i.count_in_slot(0), i.name.c_str(), expected, registers);

  struct Lane { float* d; uint64_t a, b; bool accumulate; uint32_t regs[4]; } mine{};
  for (int k = 0; k < registers; k++) {
    const PtxArg& a = i.args[(size_t)k];
    const Operand* o = a.kind == PtxArg::AsmOperand ? &f.operand(a.index) : nullptr;
    if (!o || o->cls != Operand::InOutFloat) fail(EMU_PTX, "%s: accumulator %d is not a read-write float operand", f.program->function.c_str(), k);
    auto* p = static_cast<float*>(o->target);
    if (k == 0) mine.d = p;
    if (p != mine.d + k) fail(EMU_PTX, "%s: the accumulator operands are not in order (operand %d)", f.program->function.c_str(), k);
  }
  size_t k = (size_t)registers;
  if (in_registers) for (uint32_t& r : mine.regs) r = f.get32(i.args[k++]);
  else mine.a = f.get(i.args[k++]);
  mine.b = f.get(i.args[k++]);
  mine.accumulate = f.get(i.args[k++]) != 0;
  const int64_t scale_a = (int64_t)f.get(i.args[k]), scale_b = (int64_t)f.get(i.args[k + 1]);
  k += 2;
  uint64_t trans_a = 0, trans_b = 0;
  if (wide && !in_registers) trans_a = f.get(i.args[k++]);
  if (wide) trans_b = f.get(i.args[k++]);
  if (trans_a > 1 || trans_b > 1) fail(EMU_PTX, "%s: a transpose immediate is not 0 or 1", f.program->function.c_str());
  if (scale_a != 1 || scale_b != 1) fail(EMU_PTX, "%s: negated operands are not modelled", f.program->function.c_str());

  const uint32_t pc = here();
  collective(~0u, &i, "wgmma.mma_async", &mine, [&](Collective& c) {
    Warp* w = me->warp;
    WgmmaState& s = state_of(w);
    if (w->lanes != 32 || w->block->n_threads < (w->index / 4 + 1) * 128) fail(EMU_WGMMA, "wgmma outside a full warpgroup");
    float* d[32];
    for (int l = 0; l < 32; l++) {
      Lane& x = *static_cast<Lane*>(c.arg[l]);
      d[l] = x.d;
      if (x.a != mine.a || x.b != mine.b || x.accumulate != mine.accumulate) fail(EMU_WGMMA, "wgmma: lane %d has another descriptor or scale-d (they must be the same in the warp)", l);
    }
    Accumulator* acc = nullptr;
    for (auto& p : s.accumulators) if (p->key == d[0]) acc = p.get();
    // A chain into one accumulator of one shape needs no fence between its links.
    if (s.needs_fence && (!acc || in_registers)) fail(EMU_WGMMA, "wgmma.mma_async without wgmma.fence since its registers were last accessible");
    if (acc && acc->columns != n) fail(EMU_WGMMA, "wgmma: the accumulator is in flight with another shape");
    auto op = std::make_unique<Op>();
    op->columns = n;
    op->group = s.group;
    op->format = format;
    op->a_in_registers = in_registers;
    op->a_transposed = trans_a;
    op->b_transposed = trans_b;
    op->accumulate = mine.accumulate;
    op->a_desc = mine.a;
    op->b_desc = mine.b;
    op->pc = pc;
    for (int l = 0; l < 32; l++) memcpy(op->a_regs[l], static_cast<Lane*>(c.arg[l])->regs, 16);
    op->acc = acc ? acc : open_accumulator(s, c, n, mine.accumulate, d);
    op->acc->uses++;
    if (run->check()) {
      Clocks all = me->clocks, clocks;                       // what any lane knows, and what any lane has published
      for (int l = 0; l < 32; l++) all.join(lane_of(w, l)->clocks);
      op->agent = (uint32_t)start_agent(w->block->cluster, all, &clocks);
      if (!in_registers) record(w->block, mine.a, "A", trans_a, first_row(w), kRows, *op, clocks);
      record(w->block, mine.b, "B", trans_b, 0, n, *op, clocks);
      s.clocks.push_back({s.group, std::move(clocks)});
    }
    if (!run->adversarial() || run->rng.below(2)) capture(w, *op);
    s.ops.push_back(std::move(op));
    s.issued++;
    run->stats.wgmmas++;
  });
}
void model_wgmma_fence(const Instr& i, Frame&) {
  collective(~0u, &i, "wgmma.fence", nullptr, [](Collective&) { state_of(self()->warp).needs_fence = false; });
}
void model_wgmma_commit(const Instr& i, Frame&) {
  collective(~0u, &i, "wgmma.commit_group", nullptr, [](Collective&) { state_of(self()->warp).group++; });
}
void model_wgmma_wait(const Instr& i, Frame& f) {
  const int pending = (int)f.get32(i.args[0]);
  if (pending < 0 || pending > 7) fail(EMU_PTX, "wgmma.wait_group %d is outside 0..7", pending);
  collective(~0u, &i, "wgmma.wait_group", nullptr, [pending](Collective&) {
    Warp* w = self()->warp;
    WgmmaState& s = state_of(w);
    const int limit = s.group - pending;
    while (!s.ops.empty() && s.ops.front()->group < limit) {
      compute(w, *s.ops.front());
      s.ops.pop_front();
    }
    for (size_t k = 0; k < s.accumulators.size();) {
      Accumulator& acc = *s.accumulators[k];
      if (acc.uses) { k++; continue; }
      for (int l = 0; l < 32; l++) each_register(acc.columns, l, [&](int r, int row, int col) { acc.registers[l][r] = acc.values[(size_t)(row * acc.columns + col)]; });
      s.accumulators.erase(s.accumulators.begin() + (long)k);
    }
    s.needs_fence = true;
    if (!run->check()) return;
    std::vector<std::pair<int, Clocks>> later;
    Clocks done;
    for (auto& c : s.clocks) {
      if (c.first >= limit) { later.push_back(std::move(c)); continue; }
      if (done.empty()) done = std::move(c.second); else done.join(c.second);
    }
    if (!done.empty()) for (int l = 0; l < 32; l++) lane_of(w, l)->clocks.join(done);
    s.clocks = std::move(later);
  });
}
}  // namespace emu
