// Routed experts on a CPU: groups of gated perceptrons, each on the rows that are sent to it, in one call.
//
// A group is an extractor of HiNet's scenario layer, or all experts of one scenario in its task layer. Its perceptrons
// read the same rows; a gate (or one per task) weighs their answers and sums them; such a sum then enters one block of
// the result, as it is or times a number of the attention table.
//
// Rows of a group are worked off in tiles small enough to stay in a core's cache from the first product to the gated
// sum. The tiles of all groups, in order, are cut into one span of about equal work per thread, so a thread works on
// matrices of its own with a single-threaded product, and who adds what in which order depends on the number of
// threads alone. A group whose tiles fall to two threads is the only place where two gradients of one weight meet.
//
// Letters:  B rows of the batch   I width of a row      n rows of a tile     K perceptrons of a group
//           O width of a layer    H width of an answer  N gates of a group   C blocks of the result

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// The BLAS that torch itself brings along; column-major, as Fortran has it.
extern "C" {
void sgemm_(
    const char* flip_a, const char* flip_b, const int* m, const int* n, const int* k, const float* alpha, const float* a,
    const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc);
void dgemm_(
    const char* flip_a, const char* flip_b, const int* m, const int* n, const int* k, const double* alpha,
    const double* a, const int* lda, const double* b, const int* ldb, const double* beta, double* c, const int* ldc);
}

namespace {

using at::Tensor;

constexpr int64_t kTileRows = 384;  // no power of two: buffers would fall on each other in the cache
// What a tile costs beyond its rows, in rows: its weights come from memory, not from the core's cache.
constexpr int64_t kTileCost = 24;

struct Piece {  // rows start..stop of the batch, which group `group` works on for block `block` of the result
  int64_t group, start, stop, block;
  int64_t mix;    // place in the attention table, or -1: as it is
  int64_t local;  // how many rows of the group stand before
};

struct Group {
  int64_t first, count;            // perceptrons
  int64_t gate_first, gate_size;   // scores
  int64_t column;                  // where in a row of the batch its input begins
  int64_t rows = 0;                // rows that are sent to it
  int64_t row_first = 0;           // of these, among all rows of all groups
  int64_t cell_first = 0;          // the same in (row, perceptron) pairs
  std::vector<Piece> pieces;
};

struct Tile {
  int64_t group, start, stop;  // rows of the group
};

struct Sizes {
  int64_t stride, in_dim, num_gates, num_blocks, total_rows = 0, total_cells = 0;
  std::vector<int64_t> dims;
  int64_t out_dim() const { return dims.back(); }
  int64_t narrow(int64_t layer) const { return layer ? dims[layer - 1] : in_dim; }  // width of a layer's input
};

struct Dropout {
  uint32_t cut = 0;  // of 2^32: the share that is dropped
  uint64_t seed = 0;
  double scale = 1.0;
};

struct Plan {
  Sizes sizes;
  std::vector<Group> groups;
  std::vector<Piece> pieces;
  std::vector<Tile> tiles;
  std::vector<int64_t> spans;  // tiles of thread t: spans[t] .. spans[t + 1]
  int64_t widest_group = 0;
};

Plan make_plan(
    const Tensor& rows, at::TensorList weights, const Tensor& groups, const Tensor& pieces, int64_t num_gates,
    int64_t num_blocks) {
  Plan plan;
  plan.sizes = Sizes{rows.size(1), weights[0].size(2), num_gates, num_blocks};
  for (const auto& weight : weights) plan.sizes.dims.push_back(weight.size(1));
  const auto* group = groups.const_data_ptr<int64_t>();
  for (int64_t g = 0; g < groups.size(0); ++g, group += 5) {
    plan.groups.push_back(Group{group[0], group[1], group[2], group[3], group[4]});
    plan.widest_group = std::max(plan.widest_group, group[1]);
  }
  const auto* piece = pieces.const_data_ptr<int64_t>();
  for (int64_t p = 0; p < pieces.size(0); ++p, piece += 5) {
    auto& owner = plan.groups.at(piece[0]);
    Piece made{piece[0], piece[1], piece[2], piece[3], piece[4], owner.rows};
    owner.rows += made.stop - made.start;
    owner.pieces.push_back(made);
    plan.pieces.push_back(made);
  }
  std::vector<int64_t> cost;
  int64_t total = 0;
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    auto& one = plan.groups[g];
    one.row_first = plan.sizes.total_rows;
    one.cell_first = plan.sizes.total_cells;
    plan.sizes.total_rows += one.rows;
    plan.sizes.total_cells += one.rows * one.count;
    const int64_t parts = (one.rows + kTileRows - 1) / kTileRows;
    for (int64_t part = 0; part < parts; ++part) {
      Tile tile{int64_t(g), one.rows * part / parts, one.rows * (part + 1) / parts};
      plan.tiles.push_back(tile);
      total += (tile.stop - tile.start + kTileCost) * one.count;
      cost.push_back(total);
    }
  }
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), plan.tiles.size()));
  plan.spans.push_back(0);
  for (int64_t t = 1; t < threads; ++t) {
    const auto cut = std::lower_bound(cost.begin(), cost.end(), (total * t + threads / 2) / threads) - cost.begin();
    plan.spans.push_back(std::max<int64_t>(cut, plan.spans.back()));
  }
  plan.spans.push_back(plan.tiles.size());
  return plan;
}

template <typename F>
void for_each_thread(int64_t threads, const F& run) {
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) run(t);
  });
}

inline void gemm(
    const char* fa, const char* fb, int m, int n, int k, const float* a, int lda, const float* b, int ldb, float beta,
    float* c, int ldc) {
  const float one = 1;
  sgemm_(fa, fb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

inline void gemm(
    const char* fa, const char* fb, int m, int n, int k, const double* a, int lda, const double* b, int ldb,
    double beta, double* c, int ldc) {
  const double one = 1;
  dgemm_(fa, fb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

// Row-major C = op(A) op(B) + beta C; on the calling thread alone where that is inside a parallel region.
template <typename T>
void product(
    bool flip_a, bool flip_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T beta,
    T* c, int64_t ldc) {
  gemm(flip_b ? "T" : "N", flip_a ? "T" : "N", int(n), int(m), int(k), b, int(ldb), a, int(lda), beta, c, int(ldc));
}

inline uint32_t mixed(uint32_t x) {  // lowbias32, by C. Wellons: every bit of the result depends on every bit of x
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  return x ^ (x >> 16);
}

// Add the bias, then ReLU (NaN stays NaN), then dropout; what is dropped is zero, as what ReLU cut off.
template <typename T>
void bias_relu_dropout(
    T* row, const T* bias, int64_t width, bool relu, const Dropout& dropout, uint64_t stream, int64_t place) {
  if (!relu) {
    for (int64_t i = 0; i < width; ++i) row[i] += bias[i];
  } else if (dropout.cut == 0) {
    for (int64_t i = 0; i < width; ++i) {
      const T value = row[i] + bias[i];
      row[i] = value <= 0 ? T(0) : value;
    }
  } else {
    const T scale = T(dropout.scale);
    const uint32_t key = mixed(uint32_t(dropout.seed) ^ mixed(uint32_t(dropout.seed >> 32) + uint32_t(stream)));
    const uint32_t first = uint32_t(place) ^ mixed(uint32_t(uint64_t(place) >> 32) + key);
    for (int64_t i = 0; i < width; ++i) {
      const T value = row[i] + bias[i];
      const bool kept = mixed(mixed((first + uint32_t(i)) ^ key) + key) >= dropout.cut;
      row[i] = value <= 0 ? T(0) : (kept ? value * scale : T(0) * value);
    }
  }
}

// The pieces that a tile has rows of, with these: first and last plus one of the group's rows, first of the batch's.
template <typename F>
void for_each_piece(const Group& group, const Tile& tile, const F& run) {
  for (const auto& piece : group.pieces) {
    const int64_t low = std::max(tile.start, piece.local);
    const int64_t high = std::min(tile.stop, piece.local + piece.stop - piece.start);
    if (low < high) run(piece, low, high, piece.start + low - piece.local);
  }
}

template <typename T>
struct Input {  // rows of a tile, `stride` numbers apart
  const T* first;
  int64_t stride;
};

// The rows of a tile: where they are in the batch if they follow each other there, else copied side by side.
template <typename T>
Input<T> input_of(const Sizes& sizes, const Group& group, const Tile& tile, const T* rows, T* copy) {
  const T* first = nullptr;
  int64_t expected = -1;
  bool together = true;
  rows += group.column;
  for_each_piece(group, tile, [&](const Piece&, int64_t low, int64_t high, int64_t row) {
    if (first == nullptr) first = rows + row * sizes.stride;
    together = together && (expected < 0 || expected == row);
    expected = row + high - low;
  });
  if (together) return {first, sizes.stride};
  T* to = copy;
  for_each_piece(group, tile, [&](const Piece&, int64_t low, int64_t high, int64_t row) {
    const T* from = rows + row * sizes.stride;
    for (int64_t local = low; local < high; ++local, to += sizes.in_dim, from += sizes.stride)
      std::memcpy(to, from, sizeof(T) * sizes.in_dim);
  });
  return {copy, sizes.in_dim};
}

template <typename T>
struct Layers {
  std::vector<T*> weight, bias;
  explicit Layers(at::TensorList weights, at::TensorList biases) {
    for (const auto& tensor : weights) weight.push_back(tensor.data_ptr<T>());
    for (const auto& tensor : biases) bias.push_back(tensor.data_ptr<T>());
  }
};

template <typename T>
void softmax_gates(const Group& group, const int64_t* place, int64_t num_gates, int64_t n, T* score, T* gate) {
  // `score` (n, gate_size) holds the scores, or nothing where gates are disabled; `gate` (n, N, K) is written.
  std::vector<int64_t> first(num_gates + 1, group.gate_size);
  for (int64_t column = group.gate_size - 1; column >= 0; --column) first[place[column] / group.count] = column;
  for (int64_t j = num_gates - 1; j >= 0; --j) first[j] = std::min(first[j], first[j + 1]);
  for (int64_t r = 0; r < n; ++r, gate += num_gates * group.count) {
    std::fill(gate, gate + num_gates * group.count, T(0));
    for (int64_t j = 0; j < num_gates; ++j) {
      if (score == nullptr) {
        for (int64_t c = first[j]; c < first[j + 1]; ++c) gate[place[c]] = T(1) / T(first[j + 1] - first[j]);
        continue;
      }
      const T* mine = score + r * group.gate_size;
      T top = mine[first[j]], sum = 0;
      for (int64_t c = first[j]; c < first[j + 1]; ++c) top = std::max(top, mine[c]);
      for (int64_t c = first[j]; c < first[j + 1]; ++c) sum += gate[place[c]] = std::exp(mine[c] - top);
      for (int64_t c = first[j]; c < first[j + 1]; ++c) gate[place[c]] /= sum;
    }
  }
}

template <typename T>
std::vector<Tensor> forward_of(
    const Plan& plan, const Tensor& rows, at::TensorList weights, at::TensorList biases, const Tensor& gate_weight,
    const Tensor& places, const Tensor& mix, const Dropout& dropout, bool relu_last, bool kept) {
  const auto& sizes = plan.sizes;
  const int64_t depth = sizes.dims.size(), H = sizes.out_dim(), N = sizes.num_gates, I = sizes.in_dim;
  const int64_t threads = plan.spans.size() - 1, K = plan.widest_group;
  Tensor sums = at::empty({sizes.total_rows, N, H}, rows.options());
  Tensor gates = at::empty({kept ? sizes.total_cells * N : threads * kTileRows * K * N}, rows.options());
  std::vector<Tensor> hidden;
  for (const int64_t dim : sizes.dims)
    hidden.push_back(at::empty({(kept ? sizes.total_cells : threads * kTileRows * K) * dim}, rows.options()));
  int64_t most_scores = 1;
  for (const auto& group : plan.groups) most_scores = std::max(most_scores, group.gate_size);
  Tensor scratch = at::empty({threads, kTileRows * (I + most_scores)}, rows.options());
  const Layers<T> layers(weights, biases);
  const bool gated = gate_weight.defined();
  const auto* place = places.const_data_ptr<int64_t>();
  for_each_thread(threads, [&](int64_t t) {
    T* copy = scratch.data_ptr<T>() + t * scratch.size(1);
    T* score = copy + kTileRows * I;
    for (int64_t at_tile = plan.spans[t]; at_tile < plan.spans[t + 1]; ++at_tile) {
      const Tile& tile = plan.tiles[at_tile];
      const Group& group = plan.groups[tile.group];
      const int64_t n = tile.stop - tile.start;
      const int64_t cell = kept ? group.cell_first + tile.start * group.count : t * kTileRows * K;
      const int64_t cell_of_all = group.cell_first + tile.start * group.count;
      const Input<T> input = input_of(sizes, group, tile, rows.const_data_ptr<T>(), copy);
      for (int64_t layer = 0; layer < depth; ++layer) {
        const int64_t O = sizes.dims[layer], wide = group.count * O, narrow = sizes.narrow(layer);
        T* output = hidden[layer].data_ptr<T>() + cell * O;
        const T* weight = layers.weight[layer] + group.first * O * narrow;
        if (layer == 0) {
          product<T>(false, true, n, wide, I, input.first, input.stride, weight, I, T(0), output, wide);
        } else {
          const T* before = hidden[layer - 1].data_ptr<T>() + cell * narrow;
          for (int64_t k = 0; k < group.count; ++k)
            product<T>(
                false, true, n, O, narrow, before + k * narrow, group.count * narrow, weight + k * O * narrow, narrow,
                T(0), output + k * O, wide);
        }
        const T* bias = layers.bias[layer] + group.first * O;
        for (int64_t r = 0; r < n; ++r)
          bias_relu_dropout<T>(
              output + r * wide, bias, wide, relu_last || layer + 1 < depth, dropout, layer, (cell_of_all + r * group.count) * O);
      }
      T* gate = gates.data_ptr<T>() + cell * N;
      if (gated)
        product<T>(
            false, true, n, group.gate_size, I, input.first, input.stride,
            gate_weight.const_data_ptr<T>() + group.gate_first * I, I,
            T(0), score, group.gate_size);
      softmax_gates<T>(group, place + group.gate_first, N, n, gated ? score : nullptr, gate);
      const T* answer = hidden[depth - 1].data_ptr<T>() + cell * H;
      T* sum = sums.data_ptr<T>() + (group.row_first + tile.start) * N * H;
      for (int64_t r = 0; r < n; ++r, answer += group.count * H)
        for (int64_t j = 0; j < N; ++j, sum += H, gate += group.count) {
          std::fill(sum, sum + H, T(0));
          for (int64_t k = 0; k < group.count; ++k) {
            const T trust = gate[k];
            const T* from = answer + k * H;
            for (int64_t h = 0; h < H; ++h) sum[h] += trust * from[h];
          }
        }
    }
  });
  Tensor out = at::empty({rows.size(0), sizes.num_blocks, N * H}, rows.options());
  const T* table = mix.defined() ? mix.const_data_ptr<T>() : nullptr;
  at::parallel_for(0, rows.size(0), 256, [&](int64_t begin, int64_t end) {
    const int64_t width = N * H;
    T* result = out.data_ptr<T>();
    std::fill(result + begin * sizes.num_blocks * width, result + end * sizes.num_blocks * width, T(0));
    for (const auto& piece : plan.pieces) {
      const T weight = piece.mix < 0 ? T(1) : table[piece.mix];
      for (int64_t row = std::max(begin, piece.start); row < std::min(end, piece.stop); ++row) {
        const int64_t local = plan.groups[piece.group].row_first + piece.local + row - piece.start;
        const T* from = sums.const_data_ptr<T>() + local * width;
        T* to = result + (row * sizes.num_blocks + piece.block) * width;
        for (int64_t h = 0; h < width; ++h) to[h] += weight * from[h];
      }
    }
  });
  std::vector<Tensor> results{out, sums, gates};
  if (kept) results.insert(results.end(), hidden.begin(), hidden.end());
  return results;
}

// Gradients of the weights of one group, either in their place or, where another thread has begun the group, apart.
template <typename T>
struct GroupGradient {
  std::vector<T*> weight, bias;
  T* gate = nullptr;
};

template <typename T>
std::vector<Tensor> backward_of(
    const Plan& plan, const Tensor& grad, const Tensor& rows, at::TensorList weights, at::TensorList biases,
    const Tensor& gate_weight, const Tensor& places, const Tensor& mix, const Dropout& dropout, bool relu_last,
    const Tensor& sums, const Tensor& gates, at::TensorList hidden) {
  const auto& sizes = plan.sizes;
  const int64_t depth = sizes.dims.size(), H = sizes.out_dim(), N = sizes.num_gates, I = sizes.in_dim;
  const int64_t threads = plan.spans.size() - 1, K = plan.widest_group;
  const bool gated = gate_weight.defined();
  std::vector<Tensor> grad_weights, grad_biases;
  for (const auto& tensor : weights) grad_weights.push_back(at::empty_like(tensor));
  for (const auto& tensor : biases) grad_biases.push_back(at::empty_like(tensor));
  Tensor grad_gate = gated ? at::empty_like(gate_weight) : Tensor();
  Tensor grad_mix = at::zeros({threads, mix.defined() ? mix.numel() : 0}, rows.options());
  Tensor grad_rows = at::empty({threads, rows.size(0), sizes.stride}, rows.options());
  Layers<T> layers(weights, biases), totals(grad_weights, grad_biases);

  // Weights of one group at its widest, for what a thread adds to a group that another has begun.
  int64_t widest = I, group_numbers = 0, most_scores = 1;
  for (int64_t layer = 0; layer < depth; ++layer) {
    const int64_t narrow = sizes.narrow(layer);
    widest = std::max(widest, sizes.dims[layer]);
    group_numbers += K * sizes.dims[layer] * (narrow + 1);
  }
  for (const auto& group : plan.groups) most_scores = std::max(most_scores, group.gate_size);
  group_numbers += most_scores * I;
  const auto begun_by_another = [&](int64_t t) {
    const int64_t first = plan.spans[t];
    return t > 0 && first < plan.spans[t + 1] && first > 0 && plan.tiles[first - 1].group == plan.tiles[first].group;
  };
  Tensor apart = at::empty({threads > 1 ? threads - 1 : 0, group_numbers}, rows.options());
  const auto gradient_of = [&](int64_t g, T* base) {
    const Group& group = plan.groups[g];
    GroupGradient<T> made;
    for (int64_t layer = 0; layer < depth; ++layer) {
      const int64_t O = sizes.dims[layer], narrow = sizes.narrow(layer);
      if (base == nullptr) {
        made.weight.push_back(totals.weight[layer] + group.first * O * narrow);
        made.bias.push_back(totals.bias[layer] + group.first * O);
      } else {
        made.weight.push_back(base);
        made.bias.push_back(base + group.count * O * narrow);
        base += group.count * O * (narrow + 1);
      }
    }
    if (gated) made.gate = base ? base : grad_gate.data_ptr<T>() + group.gate_first * I;
    return made;
  };

  const int64_t per_row = I + 2 * K * widest + N * H + 2 * most_scores + I;
  Tensor scratch = at::empty({threads, kTileRows * per_row}, rows.options());
  const auto* place = places.const_data_ptr<int64_t>();
  const T* table = mix.defined() ? mix.const_data_ptr<T>() : nullptr;
  for_each_thread(threads, [&](int64_t t) {
    T* copy = scratch.data_ptr<T>() + t * scratch.size(1);
    T* grad_sum = copy + kTileRows * I;
    T* upper = grad_sum + kTileRows * N * H;
    T* lower = upper + kTileRows * K * widest;
    T* grad_score = lower + kTileRows * K * widest;
    T* grad_input = grad_score + kTileRows * most_scores;
    T* my_rows = grad_rows.data_ptr<T>() + t * rows.size(0) * sizes.stride;
    std::fill(my_rows, my_rows + rows.size(0) * sizes.stride, T(0));
    T* my_mix = grad_mix.data_ptr<T>() + t * grad_mix.size(1);
    int64_t current = -1;
    GroupGradient<T> total;
    for (int64_t at_tile = plan.spans[t]; at_tile < plan.spans[t + 1]; ++at_tile) {
      const Tile& tile = plan.tiles[at_tile];
      const Group& group = plan.groups[tile.group];
      const int64_t n = tile.stop - tile.start, cell = group.cell_first + tile.start * group.count;
      const bool is_first = tile.group != current;
      const T keep = is_first ? T(0) : T(1);  // the first tile's product is written, the others' are added
      if (is_first) {
        const bool shared = at_tile == plan.spans[t] && begun_by_another(t);
        total = gradient_of(tile.group, shared ? apart.data_ptr<T>() + (t - 1) * group_numbers : nullptr);
        for (int64_t layer = 0; layer < depth; ++layer)
          std::fill(total.bias[layer], total.bias[layer] + group.count * sizes.dims[layer], T(0));
        current = tile.group;
      }
      const Input<T> input = input_of(sizes, group, tile, rows.const_data_ptr<T>(), copy);

      // What reaches the group's sums.
      const T* sum = sums.const_data_ptr<T>() + group.row_first * N * H;
      for_each_piece(group, tile, [&](const Piece& piece, int64_t low, int64_t high, int64_t row) {
        T listened = 0;
        for (int64_t local = low; local < high; ++local, ++row) {
          T* to = grad_sum + (local - tile.start) * N * H;
          const T* from = grad.const_data_ptr<T>() + (row * sizes.num_blocks + piece.block) * N * H;
          if (piece.mix < 0) {
            std::memcpy(to, from, sizeof(T) * N * H);
            continue;
          }
          const T weight = table[piece.mix];
          const T* answered = sum + local * N * H;
          T dot = 0;
#pragma omp simd reduction(+ : dot)
          for (int64_t h = 0; h < N * H; ++h) {
            to[h] = weight * from[h];
            dot += answered[h] * from[h];
          }
          listened += dot;
        }
        if (piece.mix >= 0) my_mix[piece.mix] += listened;
      });

      // Through the gates: to the answers (`upper`, masked where they were cut off) and to the scores.
      const T* answer = hidden[depth - 1].const_data_ptr<T>() + cell * H;
      const T* gate = gates.const_data_ptr<T>() + cell * N;
      const T scale = T(dropout.scale);
      std::vector<T> pulled(N * group.count);
      for (int64_t r = 0; r < n; ++r) {
        const T* trust = gate + r * N * group.count;
        for (int64_t k = 0; k < group.count; ++k) {
          const T* said = answer + (r * group.count + k) * H;
          T* to = upper + (r * group.count + k) * H;
          std::fill(to, to + H, T(0));
          for (int64_t j = 0; j < N; ++j) {
            const T* from = grad_sum + (r * N + j) * H;
            const T share = trust[j * group.count + k];
            T dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t h = 0; h < H; ++h) {
              to[h] += share * from[h];
              dot += said[h] * from[h];
            }
            pulled[j * group.count + k] = dot;
          }
          if (relu_last)
            for (int64_t h = 0; h < H; ++h) to[h] = said[h] <= 0 ? T(0) : to[h] * scale;
        }
        if (gated) {
          T* score = grad_score + r * group.gate_size;
          const int64_t* mine = place + group.gate_first;
          for (int64_t j = 0, c = 0; j < N; ++j) {
            T mean = 0;
            for (int64_t k = 0; k < group.count; ++k) mean += trust[j * group.count + k] * pulled[j * group.count + k];
            for (; c < group.gate_size && mine[c] / group.count == j; ++c)
              score[c] = trust[mine[c]] * (pulled[mine[c]] - mean);
          }
        }
      }
      if (gated) {
        product<T>(
            true, false, group.gate_size, I, n, grad_score, group.gate_size, input.first, input.stride, keep,
            total.gate, I);
        product<T>(
            false, false, n, I, group.gate_size, grad_score, group.gate_size,
            gate_weight.const_data_ptr<T>() + group.gate_first * I, I, T(0), grad_input, I);
      }

      // Down through the layers.
      for (int64_t layer = depth - 1; layer >= 0; --layer) {
        const int64_t O = sizes.dims[layer], wide = group.count * O, narrow = sizes.narrow(layer);
        for (int64_t r = 0; r < n; ++r) {
          const T* from = upper + r * wide;
          T* to = total.bias[layer];
          for (int64_t i = 0; i < wide; ++i) to[i] += from[i];
        }
        const T* weight = layers.weight[layer] + group.first * O * narrow;
        if (layer == 0) {
          product<T>(
              true, false, wide, I, n, upper, wide, input.first, input.stride, keep, total.weight[0], I);
          product<T>(false, false, n, I, wide, upper, wide, weight, I, gated ? T(1) : T(0), grad_input, I);
          break;
        }
        const T* before = hidden[layer - 1].const_data_ptr<T>() + cell * narrow;
        const int64_t before_wide = group.count * narrow;
        for (int64_t k = 0; k < group.count; ++k) {
          product<T>(
              true, false, O, narrow, n, upper + k * O, wide, before + k * narrow, before_wide, keep,
              total.weight[layer] + k * O * narrow, narrow);
          product<T>(
              false, false, n, narrow, O, upper + k * O, wide, weight + k * O * narrow, narrow, T(0),
              lower + k * narrow, before_wide);
        }
        for (int64_t i = 0; i < n * before_wide; ++i) lower[i] = before[i] <= 0 ? T(0) : lower[i] * scale;
        std::swap(upper, lower);
      }

      // Back to where the rows came from.
      for_each_piece(group, tile, [&](const Piece&, int64_t low, int64_t high, int64_t row) {
        const T* from = grad_input + (low - tile.start) * I;
        T* to = my_rows + row * sizes.stride + group.column;
        for (int64_t r = low; r < high; ++r, from += I, to += sizes.stride)
          for (int64_t i = 0; i < I; ++i) to[i] += from[i];
      });
    }
  });

  // What was kept apart joins, in the order of the threads; what had no rows is zero.
  for (int64_t t = 1; t < threads; ++t) {
    if (!begun_by_another(t)) continue;
    const int64_t g = plan.tiles[plan.spans[t]].group;
    const Group& group = plan.groups[g];
    const auto to = gradient_of(g, nullptr), from = gradient_of(g, apart.data_ptr<T>() + (t - 1) * group_numbers);
    const auto add = [](T* sum, const T* part, int64_t count) {
      for (int64_t i = 0; i < count; ++i) sum[i] += part[i];
    };
    for (int64_t layer = 0; layer < depth; ++layer) {
      const int64_t O = sizes.dims[layer], narrow = sizes.narrow(layer);
      add(to.weight[layer], from.weight[layer], group.count * O * narrow);
      add(to.bias[layer], from.bias[layer], group.count * O);
    }
    if (gated) add(to.gate, from.gate, group.gate_size * I);
  }
  for (size_t g = 0; g < plan.groups.size(); ++g) {
    const Group& group = plan.groups[g];
    if (group.rows > 0) continue;
    const auto to = gradient_of(g, nullptr);
    for (int64_t layer = 0; layer < depth; ++layer) {
      const int64_t O = sizes.dims[layer], narrow = sizes.narrow(layer);
      std::fill(to.weight[layer], to.weight[layer] + group.count * O * narrow, T(0));
      std::fill(to.bias[layer], to.bias[layer] + group.count * O, T(0));
    }
    if (gated) std::fill(to.gate, to.gate + group.gate_size * I, T(0));
  }
  at::parallel_for(0, rows.size(0) * sizes.stride, 1 << 15, [&](int64_t begin, int64_t end) {
    T* sum = grad_rows.data_ptr<T>();
    for (int64_t t = 1; t < threads; ++t) {
      const T* part = sum + t * rows.size(0) * sizes.stride;
      for (int64_t i = begin; i < end; ++i) sum[i] += part[i];
    }
  });
  std::vector<Tensor> results{grad_rows.select(0, 0), gated ? grad_gate : at::empty({0}, rows.options()), grad_mix.sum(0)};
  results.insert(results.end(), grad_weights.begin(), grad_weights.end());
  results.insert(results.end(), grad_biases.begin(), grad_biases.end());
  return results;
}

Dropout dropout_of(int64_t cut, int64_t seed) {
  Dropout dropout;
  dropout.cut = uint32_t(cut);
  dropout.seed = uint64_t(seed);
  if (cut) dropout.scale = 4294967296.0 / double(4294967296 - cut);
  return dropout;
}

// -> result, sums, gates, then (if kept) what each layer answered.
std::vector<Tensor> forward(
    const Tensor& rows, at::TensorList weights, at::TensorList biases, const std::optional<Tensor>& gate_weight,
    const std::optional<Tensor>& mix, const Tensor& groups, const Tensor& pieces, const Tensor& places,
    int64_t num_gates, int64_t num_blocks, int64_t cut, int64_t seed, bool relu_last, bool kept) {
  const Plan plan = make_plan(rows, weights, groups, pieces, num_gates, num_blocks);
  const Tensor gate = gate_weight.value_or(Tensor()), table = mix.value_or(Tensor());
  const Dropout dropout = dropout_of(cut, seed);
  if (rows.scalar_type() == at::kDouble)
    return forward_of<double>(plan, rows, weights, biases, gate, places, table, dropout, relu_last, kept);
  TORCH_CHECK(rows.scalar_type() == at::kFloat, "routed experts: rows are ", rows.scalar_type(), "; expected float or double");
  return forward_of<float>(plan, rows, weights, biases, gate, places, table, dropout, relu_last, kept);
}

// -> gradients of the rows, of the gates' weights, of the attention table (flat), of each layer's weights, biases.
std::vector<Tensor> backward(
    const Tensor& grad, const Tensor& rows, at::TensorList weights, at::TensorList biases,
    const std::optional<Tensor>& gate_weight, const std::optional<Tensor>& mix, const Tensor& groups,
    const Tensor& pieces, const Tensor& places, int64_t num_gates, int64_t num_blocks, int64_t cut, int64_t seed,
    bool relu_last, const Tensor& sums, const Tensor& gates, at::TensorList hidden) {
  const Plan plan = make_plan(rows, weights, groups, pieces, num_gates, num_blocks);
  const Tensor gate = gate_weight.value_or(Tensor()), table = mix.value_or(Tensor());
  const Dropout dropout = dropout_of(cut, seed);
  if (rows.scalar_type() == at::kDouble)
    return backward_of<double>(
        plan, grad, rows, weights, biases, gate, places, table, dropout, relu_last, sums, gates, hidden);
  return backward_of<float>(plan, grad, rows, weights, biases, gate, places, table, dropout, relu_last, sums, gates, hidden);
}

}  // namespace

TORCH_LIBRARY(hinet, library) {
  library.def(
      "routed_experts(Tensor rows, Tensor[] weights, Tensor[] biases, Tensor? gate_weight, Tensor? mix, Tensor groups, "
      "Tensor pieces, Tensor places, int num_gates, int num_blocks, int cut, int seed, bool relu_last, "
      "bool kept) -> Tensor[]",
      forward);
  library.def(
      "routed_experts_backward(Tensor grad, Tensor rows, Tensor[] weights, Tensor[] biases, Tensor? gate_weight, "
      "Tensor? mix, Tensor groups, Tensor pieces, Tensor places, int num_gates, int num_blocks, int cut, int seed, "
      "bool relu_last, Tensor sums, Tensor gates, Tensor[] hidden) -> Tensor[]",
      backward);
}
