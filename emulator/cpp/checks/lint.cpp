// The k-th execution of an access by each lane of a warp is taken as one warp-wide access, whose cost is
// compared with the least that any pattern of its size can have.
#include "checks/lint.h"
#include <algorithm>
#include <cstdio>

namespace emu {
struct WarpAccess { uint32_t mask = 0; uint64_t addr[32]; };
struct Site { std::deque<WarpAccess> open; uint32_t closed = 0, count[32] = {}; int bytes = 0; bool write = false, shared = false; };
struct Sum { uint64_t warps = 0, cost = 0, ideal = 0; int bytes = 0; bool write = false, shared = false; };
static thread_local std::map<std::pair<Warp*, uint32_t>, Site> sites;
static thread_local std::map<uint32_t, Sum> sums;

template <class T> static size_t distinct(std::vector<T>& v) {
  std::sort(v.begin(), v.end());
  v.erase(std::unique(v.begin(), v.end()), v.end());
  return v.size();
}
static void add(uint32_t pc, const WarpAccess& g, int bytes, bool write, bool shared) {
  Sum& s = sums[pc];
  s.bytes = bytes;
  s.write = write;
  s.shared = shared;
  s.warps++;
  if (!shared) {
    std::vector<uint64_t> sectors, all;
    for (int l = 0; l < 32; l++)
      if (g.mask >> l & 1) for (int x = 0; x < bytes; x++) { sectors.push_back((g.addr[l] + x) / 32); all.push_back(g.addr[l] + x); }
    s.cost += distinct(sectors);
    s.ideal += (distinct(all) + 31) / 32;
    return;
  }
  const int per_pass = bytes >= 16 ? 8 : bytes >= 8 ? 16 : 32;       // lanes served by one pass
  for (int first = 0; first < 32; first += per_pass) {
    std::vector<uint64_t> words;
    for (int l = first; l < first + per_pass; l++)
      if (g.mask >> l & 1) for (int x = 0; x < std::max(bytes, 4); x += 4) words.push_back((g.addr[l] + x) / 4);
    if (words.empty()) continue;
    distinct(words);
    int banks[32] = {}, most = 0;
    for (auto w : words) most = std::max(most, ++banks[w % 32]);
    s.cost += most;
    s.ideal++;
  }
}
void lint_access(Fiber* f, uint64_t addr, int bytes, bool write, uint32_t pc, bool shared) {
  Site& s = sites[{f->warp, pc}];
  s.bytes = bytes;
  s.write = write;
  s.shared = shared;
  const uint32_t i = s.count[f->lane]++ - s.closed;
  while (s.open.size() <= i) s.open.emplace_back();
  s.open[i].mask |= 1u << f->lane;
  s.open[i].addr[f->lane] = addr;
  while (!s.open.empty() && s.open.front().mask == f->warp->full) {
    add(pc, s.open.front(), bytes, write, shared);
    s.open.pop_front();
    s.closed++;
  }
}
void lint_matrix(uint32_t pc, const uint32_t* rows, int matrices, bool write) {   // one pass per 8 rows of 16 bytes
  for (int m = 0; m < matrices; m++) {
    WarpAccess g;
    g.mask = 0xff;
    for (int r = 0; r < 8; r++) g.addr[r] = rows[m * 8 + r];
    add(pc, g, 16, write, true);
  }
}
void lint_flush(Block* b) {                                          // lanes that never came: partial warps
  for (auto it = sites.begin(); it != sites.end();) {
    if (it->first.first->block != b) { ++it; continue; }
    for (auto& g : it->second.open) if (g.mask) add(it->first.second, g, it->second.bytes, it->second.write, it->second.shared);
    it = sites.erase(it);
  }
}
std::string lint_report() {
  std::string out;
  for (auto& [pc, s] : sums) {
    char b[256];
    snprintf(b, sizeof b, "%s %s %2d bytes, %llu warp accesses, %.2f %s of the least possible, ", s.shared ? "shared" : "global", s.write ? "store" : "load",
             s.bytes, (unsigned long long)s.warps, (double)s.cost / (double)std::max<uint64_t>(1, s.ideal), s.shared ? "times the passes" : "times the sectors");
    out += b + source_of(pc) + "\n";
  }
  sums.clear();
  return out;
}
}  // namespace emu
