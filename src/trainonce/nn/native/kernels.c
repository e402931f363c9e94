/* Kernels for the parts of an MBConv block that are not matrix products: batch norm, activation, gate and
 * depthwise convolution, forward and backward, fused so that each activation is read and written once.
 *
 * Activations are float32 rows [images * height * width, channels] (channels_last). A convolution reads one map of
 * LANES channels into a zero-padded tile that stays in the first cache and works from there. A batch norm arrives as
 * its stats, [4][C]: mean, 1 / sqrt(variance + eps), scale (the latter times the weight) and bias; it makes
 * (y - mean) * scale + bias of y. Sums over pixels are added up in double.
 *
 * The derivatives are those of torch's batch_norm, relu, hardswish and conv2d.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define WIDEST 4     /* outputs computed at once */
#define SUM_ROWS 64  /* rows added up in float before they go into a double */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int mask __attribute__((vector_size(4 * LANES)));

enum { NO_ACT = 0, RELU = 1, HARDSWISH = 2 };

#define INLINE static inline __attribute__((always_inline))

/* Fewer than LANES numbers. Not inlined: a vector whose address a variable memcpy takes would live in memory. */
static __attribute__((noinline)) vec load_some(const float *p, int n) {
    vec v = {0};
    memcpy(&v, p, n * sizeof(float));
    return v;
}

static __attribute__((noinline)) void store_some(float *p, vec v, int n) { memcpy(p, &v, n * sizeof(float)); }

INLINE vec load(const float *p, int n) {
    if (__builtin_expect(n == LANES, 1)) return *(const vec_in_memory *)p;
    return load_some(p, n);
}

INLINE void store(float *p, vec v, int n) {
    if (__builtin_expect(n == LANES, 1)) *(vec_in_memory *)p = v;
    else store_some(p, v, n);
}

INLINE vec pick(mask m, vec a, vec b) { return (vec)(((mask)a & m) | ((mask)b & ~m)); }

INLINE vec act(vec u, int kind) {
    const vec zero = {0};
    if (kind == RELU) return pick(u < zero, zero, u); /* NaN stays NaN */
    if (kind == HARDSWISH) {
        vec t = u + 3.0f;
        t = pick(t < zero, zero, t);
        t = pick(t > zero + 6.0f, zero + 6.0f, t);
        return u * t * (1.0f / 6.0f);
    }
    return u;
}

/* g times the derivative of the activation at u */
INLINE vec act_grad(vec g, vec u, int kind) {
    const vec zero = {0};
    if (kind == RELU) return pick(u <= zero, zero, g);
    if (kind == HARDSWISH) {
        vec inner = g * (u * (1.0f / 3.0f) + 0.5f);
        inner = pick(u >= zero + 3.0f, g, inner);
        return pick(u < zero - 3.0f, zero, inner);
    }
    return g;
}

/* A batch norm at LANES channels. */
typedef struct {
    vec mean, scale, bias;
} Norm;

INLINE Norm norm_at(const float *stats, int C, int c, int n) {
    return (Norm){load(stats + c, n), load(stats + 2 * C + c, n), load(stats + 3 * C + c, n)};
}

INLINE vec normalised(vec y, Norm norm) { return (y - norm.mean) * norm.scale + norm.bias; }

INLINE int lanes_at(int channel, int channels) { return channels - channel < LANES ? channels - channel : LANES; }

/* The part of n things that belongs to one of `parts` workers. */
INLINE long part_start(long n, int part, int parts) { return n * part / parts; }

/* Run the code with A, a constant, for `kind`, so that the compiler makes one loop for each activation. */
#define FOR_EACH_ACT(kind, ...)                                     \
    switch (kind) {                                                 \
        case RELU: { const int A = RELU; __VA_ARGS__; break; }      \
        case HARDSWISH: { const int A = HARDSWISH; __VA_ARGS__; break; } \
        default: { const int A = NO_ACT; (void)A; __VA_ARGS__; }    \
    }

/* ---- batch norm: statistics ---- */

/* Sums over rows of (y - y[0]) and its square, for each channel; each of `parts` row ranges apart: [parts][2][C]. */
static void shifted_sums(const float *y, long rows, int C, double *sums, int parts) {
#pragma omp parallel for num_threads(parts) if (parts > 1)
    for (int part = 0; part < parts; part++) {
        double *total = sums + (size_t)part * 2 * C, *total2 = total + C;
        memset(total, 0, sizeof(double) * 2 * C);
        long end = part_start(rows, part + 1, parts);
        float *s = malloc(sizeof(float) * 2 * C), *s2 = s + C;
        for (long r = part_start(rows, part, parts); r < end; r += SUM_ROWS) {
            long stop = r + SUM_ROWS < end ? r + SUM_ROWS : end;
            memset(s, 0, sizeof(float) * 2 * C);
            long i = r;
            for (; i + 4 <= stop; i += 4) {
                const float *a = y + i * C, *b = a + C, *c = b + C, *d = c + C;
#pragma omp simd
                for (int j = 0; j < C; j++) {
                    float o = y[j], e = a[j] - o, f = b[j] - o, g = c[j] - o, h = d[j] - o;
                    s[j] += (e + f) + (g + h);
                    s2[j] += (e * e + f * f) + (g * g + h * h);
                }
            }
            for (; i < stop; i++) {
                const float *a = y + i * C;
#pragma omp simd
                for (int j = 0; j < C; j++) {
                    float e = a[j] - y[j];
                    s[j] += e;
                    s2[j] += e * e;
                }
            }
            for (int j = 0; j < C; j++) total[j] += s[j];
            for (int j = 0; j < C; j++) total2[j] += s2[j];
        }
        free(s);
    }
}

/* The stats of a batch. The running statistics move by `momentum`, the variance without bias, as torch's do. */
void norm_statistics(const float *y, long rows, int C, const float *weight, const float *bias, float *running_mean,
                     float *running_var, float momentum, float eps, float *stats, int threads) {
    double *sums = malloc(sizeof(double) * 2 * C * threads);
    shifted_sums(y, rows, C, sums, threads);
    for (int j = 0; j < C; j++) {
        double s = 0, s2 = 0;
        for (int part = 0; part < threads; part++) {
            s += sums[(size_t)part * 2 * C + j];
            s2 += sums[(size_t)part * 2 * C + C + j];
        }
        double mean = y[j] + s / rows, squares = s2 - s * s / rows;
        if (squares < 0) squares = 0;
        double rstd = 1 / sqrt(squares / rows + eps);
        stats[j] = (float)mean;
        stats[C + j] = (float)rstd;
        stats[2 * C + j] = (float)(weight[j] * rstd);
        stats[3 * C + j] = bias[j];
        running_mean[j] += momentum * ((float)mean - running_mean[j]);
        running_var[j] += momentum * ((float)(squares / (rows - 1)) - running_var[j]);
    }
    free(sums);
}

/* ---- batch norm, activation, gate: forward ---- */

/* out = act(normalised y) * gate + residual. Gate [images, C] and residual [rows, C] may be absent. */
void affine(const float *y, long images, int pixels, int C, const float *stats, int kind, const float *gate,
            const float *residual, float *out, int threads) {
    long rows = images * pixels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++)
        FOR_EACH_ACT(kind,
            for (long r = part_start(rows, part, threads); r < part_start(rows, part + 1, threads); r++) {
                const float *in = y + r * C;
                const float *g = gate ? gate + r / pixels * C : NULL;
                const float *add = residual ? residual + r * C : NULL;
                float *o = out + r * C;
                for (int c = 0; c < C; c += LANES) {
                    int n = lanes_at(c, C);
                    vec v = act(normalised(load(in + c, n), norm_at(stats, C, c, n)), A);
                    if (g) v *= load(g + c, n);
                    if (add) v += load(add + c, n);
                    store(o + c, v, n);
                }
            })
}

/* out[image] = mean over pixels of act(normalised y); where `grad` is given, the sum over pixels of grad times that,
 * which is the gradient of `affine`'s gate. */
void pool(const float *y, const float *grad, long images, int pixels, int C, const float *stats, int kind, float *out,
          int threads) {
    const float factor = grad ? 1.0f : 1.0f / pixels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++)
        FOR_EACH_ACT(kind,
            for (long b = part_start(images, part, threads); b < part_start(images, part + 1, threads); b++)
                for (int c = 0; c < C; c += LANES) {
                    int n = lanes_at(c, C);
                    long first = b * pixels * C + c;
                    vec sum = {0};
                    Norm norm = norm_at(stats, C, c, n);
                    for (long at = first; at < first + (long)pixels * C; at += C) {
                        vec v = act(normalised(load(y + at, n), norm), A);
                        sum += grad ? load(grad + at, n) * v : v;
                    }
                    store(out + b * C + c, sum * factor, n);
                })
}

/* ---- batch norm, activation, gate: backward ---- */

/* From the gradient after the gate to that before the activation, and what batch norm needs of it:
 * du = (grad * gate + spread) * act'(normalised y), sums[0] = sum of du, sums[1] = sum of du * (y - mean).
 * Gate and spread, [images, C], may be absent together. `du` may be `grad`; it may be absent without activation. */
void act_backward(const float *grad, const float *y, long images, int pixels, int C, const float *stats,
                  int kind, const float *gate, const float *spread, float *du, double *sums, int threads) {
    double *parts = calloc((size_t)threads * 2 * C, sizeof(double));
    long rows = images * pixels;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        double *s1 = parts + (size_t)part * 2 * C, *s2 = s1 + C;
        float *f1 = malloc(sizeof(float) * 2 * (C + LANES)), *f2 = f1 + C + LANES;
        long end = part_start(rows, part + 1, threads);
        for (long start = part_start(rows, part, threads); start < end; start += SUM_ROWS) {
            long stop = start + SUM_ROWS < end ? start + SUM_ROWS : end;
            memset(f1, 0, sizeof(float) * 2 * (C + LANES));
            FOR_EACH_ACT(kind,
                for (long r = start; r < stop; r++) {
                    const float *g = grad + r * C;
                    const float *in = y + r * C;
                    const float *k = gate ? gate + r / pixels * C : NULL;
                    const float *e = gate ? spread + r / pixels * C : NULL;
                    float *o = du ? du + r * C : NULL;
                    for (int c = 0; c < C; c += LANES) {
                        int n = lanes_at(c, C);
                        vec v = load(g + c, n);
                        vec x = load(in + c, n);
                        if (k) v = v * load(k + c, n) + load(e + c, n);
                        const Norm norm = norm_at(stats, C, c, n);
                        v = act_grad(v, normalised(x, norm), A);
                        if (o) store(o + c, v, n);
                        store(f1 + c, load(f1 + c, LANES) + v, LANES);
                        store(f2 + c, load(f2 + c, LANES) + v * (x - norm.mean), LANES);
                    }
                })
            for (int j = 0; j < C; j++) s1[j] += f1[j];
            for (int j = 0; j < C; j++) s2[j] += f2[j];
        }
        free(f1);
    }
    for (int j = 0; j < 2 * C; j++) {
        sums[j] = 0;
        for (int part = 0; part < threads; part++) sums[j] += parts[(size_t)part * 2 * C + j];
    }
    free(parts);
}

/* What batch norm's backward needs, from the sums of `act_backward` over `rows` rows: the gradients of its weight
 * and bias, and [4][C] numbers such that the gradient of its input is c0 * du - c1 * (y - c2) - c3. */
void norm_coefficients(const double *sums, long rows, int C, const float *stats, float *dweight, float *dbias,
                       float *coefficients) {
    const float *mean = stats, *rstd = stats + C, *scale = stats + 2 * C;
    for (int j = 0; j < C; j++) {
        double dgamma = sums[C + j] * rstd[j];
        dweight[j] = (float)dgamma;
        dbias[j] = (float)sums[j];
        coefficients[j] = scale[j];
        coefficients[C + j] = (float)(scale[j] * rstd[j] * dgamma / rows);
        coefficients[2 * C + j] = mean[j];
        coefficients[3 * C + j] = (float)(scale[j] * sums[j] / rows);
    }
}

typedef struct {
    vec c0, c1, c2, c3;
} Coefficients;

INLINE Coefficients coefficients_at(const float *k, int C, int c, int n) {
    return (Coefficients){load(k + c, n), load(k + C + c, n), load(k + 2 * C + c, n), load(k + 3 * C + c, n)};
}

INLINE vec norm_grad(vec du, vec y, Coefficients k) { return k.c0 * du - k.c1 * (y - k.c2) - k.c3; }

/* The gradient of a batch norm's input; `out` may be `du`. */
void norm_backward(const float *du, const float *y, long rows, int C, const float *coefficients, float *out,
                   int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++)
        for (long r = part_start(rows, part, threads); r < part_start(rows, part + 1, threads); r++)
            for (int c = 0; c < C; c += LANES) {
                int n = lanes_at(c, C);
                store(out + r * C + c,
                      norm_grad(load(du + r * C + c, n), load(y + r * C + c, n), coefficients_at(coefficients, C, c, n)),
                      n);
            }
}

/* ---- depthwise convolution ---- */

typedef struct {
    long images;
    int height, width, channels;
    int kernel;  /* side of the weights given */
    int crop;    /* side of their centre that is used */
    int stride;
} Shape;

INLINE int out_side(int side, int stride) { return (side + stride - 1) / stride; }
INLINE int chunks_of(int channels) { return (channels + LANES - 1) / LANES; }
INLINE int max(int a, int b) { return a > b ? a : b; }
INLINE int min(int a, int b) { return a < b ? a : b; }

static vec *new_vecs(long count) { return aligned_alloc(sizeof(vec), sizeof(vec) * (count ? count : 1)); }

static vec *new_zeros(long count) {
    vec *zeros = new_vecs(count);
    memset(zeros, 0, sizeof(vec) * count);
    return zeros;
}

/* The centres of all kernels, as [chunks][crop * crop]. */
static vec *new_taps(const float *weight, const Shape *s) {
    const int rim = (s->kernel - s->crop) / 2, area = s->kernel * s->kernel;
    vec *taps = new_zeros((long)chunks_of(s->channels) * s->crop * s->crop);
    for (int c = 0; c < s->channels; c++)
        for (int i = 0; i < s->crop; i++)
            for (int j = 0; j < s->crop; j++)
                taps[(c / LANES * s->crop + i) * s->crop + j][c % LANES] =
                    weight[(long)c * area + (rim + i) * s->kernel + rim + j];
    return taps;
}

/* sum[j] = sum over taps of tap * source, for COUNT outputs that lie `step` apart in the source. */
INLINE void taps_sum(vec *sum, const int COUNT, const vec *source, long row_step, long col_step, long step,
                     const vec *taps, long tap_row_step, long tap_col_step, int tap_rows, int tap_cols) {
    vec local[WIDEST];
    for (int j = 0; j < COUNT; j++) local[j] = (vec){0};
    for (int i = 0; i < tap_rows; i++)
        for (int k = 0; k < tap_cols; k++) {
            const vec tap = taps[i * tap_row_step + k * tap_col_step], *from = source + i * row_step + k * col_step;
            for (int j = 0; j < COUNT; j++) local[j] += tap * from[j * step];
        }
    for (int j = 0; j < COUNT; j++) sum[j] = local[j];
}

/* As `taps_sum` for any count, in groups. */
INLINE void taps_row(vec *to, int total, const vec *source, long row_step, long col_step, long step, const vec *taps,
                     long tap_row_step, long tap_col_step, int tap_rows, int tap_cols) {
    int at = 0;
    for (; at + WIDEST <= total; at += WIDEST)
        taps_sum(to + at, WIDEST, source + at * step, row_step, col_step, step, taps, tap_row_step, tap_col_step,
                 tap_rows, tap_cols);
    for (; at + 2 <= total; at += 2)
        taps_sum(to + at, 2, source + at * step, row_step, col_step, step, taps, tap_row_step, tap_col_step, tap_rows,
                 tap_cols);
    for (; at < total; at++)
        taps_sum(to + at, 1, source + at * step, row_step, col_step, step, taps, tap_row_step, tap_col_step, tap_rows,
                 tap_cols);
}

/* One map of LANES channels as a tile with `rim` zero columns on either side, after batch norm and activation. */
INLINE void fill_tile(vec *tile, const float *map, int height, int width, int rim, int C, int n, Norm norm, const int A) {
    for (int i = 0; i < height; i++)
        for (int j = 0; j < width; j++)
            tile[i * (width + 2 * rim) + rim + j] = act(normalised(load(map + ((long)i * width + j) * C, n), norm), A);
}

/* out = act(normalised depthwise(act(normalised x))); the outer stats may be absent. */
void depthwise(const float *x, const Shape *shape, const float *weight, const float *stats, int kind,
               const float *out_stats, int out_kind, float *out, int threads) {
    const Shape s = *shape;
    const int rim = s.crop / 2, C = s.channels, tile_width = s.width + 2 * rim;
    const int out_h = out_side(s.height, s.stride), out_w = out_side(s.width, s.stride);
    vec *taps = new_taps(weight, &s);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        vec *tile = new_zeros((long)s.height * tile_width), *row = new_vecs(out_w);
        for (long b = part_start(s.images, part, threads); b < part_start(s.images, part + 1, threads); b++)
            for (int c = 0; c < C; c += LANES) {
                const int n = lanes_at(c, C);
                FOR_EACH_ACT(kind, fill_tile(tile, x + b * s.height * s.width * C + c, s.height, s.width, rim, C, n,
                                             norm_at(stats, C, c, n), A))
                const vec *tap = taps + c / LANES * s.crop * s.crop;
                for (int i = 0; i < out_h; i++) {
                    /* Tap row t meets input row i * stride + t - rim. */
                    const int first = max(0, rim - i * s.stride), last = min(s.crop, s.height + rim - i * s.stride);
                    taps_row(row, out_w, tile + (i * s.stride + first - rim) * tile_width, tile_width, 1, s.stride,
                             tap + first * s.crop, s.crop, 1, last - first, s.crop);
                    float *to = out + (b * out_h + i) * out_w * C + c;
                    if (!out_stats) {
                        for (int j = 0; j < out_w; j++) store(to + (long)j * C, row[j], n);
                    } else {
                        const Norm norm = norm_at(out_stats, C, c, n);
                        FOR_EACH_ACT(out_kind, for (int j = 0; j < out_w; j++)
                                                   store(to + (long)j * C, act(normalised(row[j], norm), A), n))
                    }
                }
            }
        free(tile);
        free(row);
    }
    free(taps);
}

/* dtaps[t] += sum over the map of dy * tile, for COLS taps that lie side by side. */
INLINE void taps_grad_row(vec *dtaps, const int COLS, const vec *tile, int tile_step, int stride, const vec *dy,
                          int dy_step, int rows, int cols) {
    vec sum[7];
    for (int k = 0; k < COLS; k++) sum[k] = dtaps[k];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            const vec g = dy[i * dy_step + j], *from = tile + i * tile_step + j * stride;
            for (int k = 0; k < COLS; k++) sum[k] += g * from[k];
        }
    for (int k = 0; k < COLS; k++) dtaps[k] = sum[k];
}

INLINE void taps_grad(vec *dtaps, const Shape *s, const vec *tile, int tile_width, const vec *dy, int dy_width, int out_h,
                      int out_w) {
    const int rim = s->crop / 2, step = s->stride * tile_width;
    for (int t = 0; t < s->crop; t++) {
        /* Output rows whose input row i * stride + t - rim lies in the map. */
        const int first = max(0, out_side(rim - t, s->stride));
        const int last = min(out_h, out_side(s->height + rim - t, s->stride));
        vec *to = dtaps + t * s->crop;
        const vec *from = tile + (first * s->stride + t - rim) * tile_width, *g = dy + first * dy_width;
        switch (s->crop) {
            case 1: taps_grad_row(to, 1, from, step, s->stride, g, dy_width, last - first, out_w); break;
            case 3: taps_grad_row(to, 3, from, step, s->stride, g, dy_width, last - first, out_w); break;
            case 5: taps_grad_row(to, 5, from, step, s->stride, g, dy_width, last - first, out_w); break;
            case 7: taps_grad_row(to, 7, from, step, s->stride, g, dy_width, last - first, out_w); break;
            default:
                for (int k = 0; k < s->crop; k++)
                    taps_grad_row(to + k, 1, from + k, step, s->stride, g, dy_width, last - first, out_w);
        }
    }
}

/* The gradient of one input map: dx = act'(normalised x) * depthwise transposed(dy), and its sums. */
INLINE void map_grad(const vec *dy, int dy_width, int out_h, const Shape *s, const vec *taps, const float *map, float *dx,
                     int n, Norm norm, vec *row, vec *sum1, vec *sum2, const int A) {
    const int rim = s->crop / 2, C = s->channels, stride = s->stride;
    for (int i = 0; i < s->height; i++) {
        /* Taps that reach input row i are i + rim - stride * o for output rows o: every stride-th, from `first`. */
        const int last = min(out_h - 1, (i + rim) / stride), first = i + rim - stride * last;
        const int count = first < s->crop ? min(last + 1, out_side(s->crop - first, stride)) : 0;
        for (int q = 0; q < stride && q < s->width; q++) {
            const int tap = (q + rim) % stride, outputs = out_side(s->width - q, stride);
            taps_row(row, outputs, dy + last * dy_width + rim + (q + rim - tap) / stride, -dy_width, -1, 1,
                     taps + first * s->crop + tap, stride * s->crop, stride, count, out_side(s->crop - tap, stride));
            for (int j = 0; j < outputs; j++) {
                const long at = ((long)i * s->width + q + j * stride) * C;
                const vec in = load(map + at, n), g = act_grad(row[j], normalised(in, norm), A);
                store(dx + at, g, n);
                *sum1 += g;
                *sum2 += g * (in - norm.mean);
            }
        }
    }
}

/* Backward of `depthwise` between two batch norms. The gradient of its output is `norm_grad` of du and y. Gives dweight [C, kernel, kernel], whose rim is left as it is; dx before the inner
 * activation; and the sums that the inner batch norm needs, as `act_backward`. */
void depthwise_backward(const float *du, const float *y, const float *coefficients, const float *x, const Shape *shape,
                        const float *weight, const float *stats, int kind, float *dweight,
                        float *dx, double *sums, int threads) {
    const Shape s = *shape;
    const int rim = s.crop / 2, C = s.channels, area = s.crop * s.crop, chunks = chunks_of(C);
    const int out_h = out_side(s.height, s.stride), out_w = out_side(s.width, s.stride);
    const int tile_width = s.width + 2 * rim, dy_width = out_w + 2 * rim;
    vec *taps = new_taps(weight, &s), *dtaps = new_zeros((long)threads * chunks * area);
    double *part_sums = calloc((size_t)threads * chunks * 2 * LANES, sizeof(double));
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        vec *tile = new_zeros((long)s.height * tile_width), *dy = new_zeros((long)out_h * dy_width);
        vec *row = new_vecs(s.width);
        for (long b = part_start(s.images, part, threads); b < part_start(s.images, part + 1, threads); b++)
            for (int c = 0; c < C; c += LANES) {
                const int n = lanes_at(c, C), chunk = c / LANES;
                const Norm norm = norm_at(stats, C, c, n);
                const Coefficients k = coefficients_at(coefficients, C, c, n);
                const float *map = x + b * s.height * s.width * C + c;
                const float *map_du = du + b * out_h * out_w * C + c, *map_y = y + b * out_h * out_w * C + c;
                for (int i = 0; i < out_h; i++)
                    for (int j = 0; j < out_w; j++) {
                        const long at = ((long)i * out_w + j) * C;
                        dy[i * dy_width + rim + j] = norm_grad(load(map_du + at, n), load(map_y + at, n), k);
                    }
                FOR_EACH_ACT(kind, fill_tile(tile, map, s.height, s.width, rim, C, n, norm, A))
                taps_grad(dtaps + ((long)part * chunks + chunk) * area, &s, tile, tile_width, dy + rim, dy_width, out_h,
                          out_w);
                vec sum1 = {0}, sum2 = {0};
                FOR_EACH_ACT(kind, map_grad(dy, dy_width, out_h, &s, taps + (long)chunk * area, map,
                                            dx + b * s.height * s.width * C + c, n, norm, row, &sum1, &sum2, A))
                double *total = part_sums + ((long)part * chunks + chunk) * 2 * LANES;
                for (int lane = 0; lane < LANES; lane++) total[lane] += sum1[lane];
                for (int lane = 0; lane < LANES; lane++) total[LANES + lane] += sum2[lane];
            }
        free(tile);
        free(dy);
        free(row);
    }
    const int edge = (s.kernel - s.crop) / 2;
    memset(sums, 0, sizeof(double) * 2 * C);
    for (int part = 0; part < threads; part++)
        for (int c = 0; c < C; c++) {
            const long at = (long)part * chunks + c / LANES;
            sums[c] += part_sums[at * 2 * LANES + c % LANES];
            sums[C + c] += part_sums[at * 2 * LANES + LANES + c % LANES];
            for (int t = 0; t < area; t++) {
                float *to = dweight + ((long)c * s.kernel + edge + t / s.crop) * s.kernel + edge + t % s.crop;
                *to = (part ? *to : 0) + dtaps[at * area + t][c % LANES];
            }
        }
    free(taps);
    free(dtaps);
    free(part_sums);
}
