// ldmatrix, stmatrix and mma.sync (PTX ISA, "Warp Level Matrix Instructions").
#include "checks/lint.h"
#include "checks/race.h"
#include "models/models.h"
#include "models/numeric.h"

namespace emu {
namespace {
struct MatrixLane { uint32_t addr, reg[4]; };
MatrixLane& lane(Collective& c, int l) { return *static_cast<MatrixLane*>(c.arg[l]); }

// The 16-byte row that lane `l` addresses.
uint8_t* row_of(Collective& c, int l, uint32_t flags, const char* what) {
  Fiber* me = self();
  const uint32_t addr = lane(c, l).addr;
  if (addr % 16) fail(EMU_MISALIGNED, "%s: lane %d's address %s is not 16-byte aligned", what, l, shared_name(addr).c_str());
  uint8_t* p = shared_bytes_at(me->home, addr, 16, what);
  if (run->check()) {
    Fiber* o = lane_of(me->warp, l);
    shared_access(me->home, o->who, o->clocks, addr, 16, flags, here());
  }
  return p;
}
void lint_rows(Collective& c, int matrices, bool write) {
  if (!run->lint()) return;
  uint32_t rows[32];
  for (int l = 0; l < 32; l++) rows[l] = lane(c, l).addr;
  lint_matrix(here(), rows, matrices, write);
}
}  // namespace

// ldmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16 {results}, [row address]
void model_ldmatrix(const Instr& i, Frame& f) {
  const bool transposed = i.has("trans");
  if ((int)i.args.size() != i.n + 1) fail(EMU_PTX, "ldmatrix.x%d with %zu results", i.n, i.args.size() - 1);
  MatrixLane mine{f.address(i.args[(size_t)i.n]), {}};
  collective(~0u, &i, "ldmatrix", &mine, [&](Collective& c) {
    lint_rows(c, i.n, false);
    for (int m = 0; m < i.n; m++) {
      uint16_t t[8][8];
      for (int r = 0; r < 8; r++) memcpy(t[r], row_of(c, m * 8 + r, kRead, "ldmatrix"), 16);
      for (int l = 0; l < 32; l++) {
        const int r = l / 4, k = l % 4 * 2;
        lane(c, l).reg[m] = transposed ? (uint32_t)t[k][r] | (uint32_t)t[k + 1][r] << 16 : (uint32_t)t[r][k] | (uint32_t)t[r][k + 1] << 16;
      }
    }
  });
  for (int m = 0; m < i.n; m++) f.set(i.args[(size_t)m], mine.reg[m]);
}
// stmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans}.shared.b16 [row address], {values}
void model_stmatrix(const Instr& i, Frame& f) {
  const bool transposed = i.has("trans");
  if ((int)i.args.size() != i.n + 1) fail(EMU_PTX, "stmatrix.x%d with %zu values", i.n, i.args.size() - 1);
  MatrixLane mine{f.address(i.args[0]), {}};
  for (int m = 0; m < i.n; m++) mine.reg[m] = f.get32(i.args[1 + (size_t)m]);
  collective(~0u, &i, "stmatrix", &mine, [&](Collective& c) {
    lint_rows(c, i.n, true);
    for (int m = 0; m < i.n; m++) {
      uint16_t t[8][8];
      for (int l = 0; l < 32; l++) {
        const int r = l / 4, k = l % 4 * 2;
        const uint32_t v = lane(c, l).reg[m];
        (transposed ? t[k][r] : t[r][k]) = (uint16_t)v;
        (transposed ? t[k + 1][r] : t[r][k + 1]) = (uint16_t)(v >> 16);
      }
      for (int r = 0; r < 8; r++) memcpy(row_of(c, m * 8 + r, kWrite, "stmatrix"), t[r], 16);
    }
  });
}

// mma.sync.aligned.m16n8kK.row.col.f32.TYPE.TYPE.f32 {d}, {a}, {b}, {c}: K = 16 of 16 bits, 32 of 8 bits.
void model_mma(const Instr& i, Frame& f) {
  const std::string& type = i.mods[7];
  const Format format = type == "bf16" ? Format::BF16 : type == "f16" ? Format::F16 : type == "e4m3" ? Format::E4M3 : Format::E5M2;
  if (i.mods[8] != type) fail(EMU_PTX, "%s: mixed operand types are not modelled", i.name.c_str());
  if (i.n != 32 / bytes_of(format)) fail(EMU_PTX, "%s: K does not fit the type", i.name.c_str());
  if (i.args.size() != 14) fail(EMU_PTX, "%s: %zu operands where it has 14", i.name.c_str(), i.args.size());
  struct Lane { float d[4]; uint32_t a[4], b[2]; } mine;
  for (size_t k = 0; k < 4; k++) { mine.a[k] = f.get32(i.args[4 + k]); mine.d[k] = f.get_float(i.args[10 + k]); }
  for (size_t k = 0; k < 2; k++) mine.b[k] = f.get32(i.args[8 + k]);
  const int per = 4 / bytes_of(format), depth = i.n;           // elements of a register
  collective(~0u, &i, "mma.sync", &mine, [&](Collective& c) {
    float a[16][32], b[8][32];
    for (int l = 0; l < 32; l++) {
      Lane& x = *static_cast<Lane*>(c.arg[l]);
      const int r = l / 4, q = l % 4 * per;
      for (int k = 0; k < 4; k++) widen(format, reinterpret_cast<const uint8_t*>(&x.a[k]), &a[r + (k & 1) * 8][q + (k >> 1) * (depth / 2)], (size_t)per);
      for (int k = 0; k < 2; k++) widen(format, reinterpret_cast<const uint8_t*>(&x.b[k]), &b[r][q + k * (depth / 2)], (size_t)per);
    }
    for (int l = 0; l < 32; l++) {
      Lane& x = *static_cast<Lane*>(c.arg[l]);
      for (int k = 0; k < 4; k++) {
        const int row = l / 4 + (k >> 1) * 8, col = l % 4 * 2 + (k & 1);
        float s = 0;
        for (int y = 0; y < depth; y++) s += a[row][y] * b[col][y];
        x.d[k] += s;
      }
    }
  });
  for (size_t k = 0; k < 4; k++) f.set(i.args[k], bits_of(mine.d[k]));
}
}  // namespace emu
