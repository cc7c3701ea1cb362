// What a grouped GEMM does with its sums; the last words of a kernel's name.
#pragma once

enum class Epilogue {
  Store,       // one matrix
  Activation,  // gate and up, activated: one column for each pair
  Pair,        // gate and up, side by side
};
