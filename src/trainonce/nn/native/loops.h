/* The loops over one worker's share of the images: batch norm, activation, gate and depthwise convolution, forward and
 * backward, fused so that each activation is read and written once. `block.c` puts them together.
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
#include <immintrin.h>
#define LANES 16
#else
#define LANES 8
#endif
#define WIDEST 8     /* outputs computed at once: so many sums hide how long an addition takes */
#define SUM_ROWS 64  /* rows added up in float before they go into a double */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int mask __attribute__((vector_size(4 * LANES)));

enum { NO_ACT = 0, RELU = 1, HARDSWISH = 2, RELU6 = 3 };

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
INLINE vec load(const float *p, int n) { return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }

INLINE void store(float *p, vec v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
#else
/* Fewer than LANES numbers. Not inlined: a vector whose address a memcpy of any length takes would live in memory. */
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
#endif

INLINE vec pick(mask m, vec a, vec b) { return (vec)(((mask)a & m) | ((mask)b & ~m)); }

INLINE vec act(vec u, int kind) {
    const vec zero = {0};
    if (kind == RELU || kind == RELU6) u = pick(u < zero, zero, u); /* NaN stays NaN */
    if (kind == RELU6) u = pick(u > zero + 6.0f, zero + 6.0f, u);
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
    if (kind == RELU || kind == RELU6) g = pick(u <= zero, zero, g);
    if (kind == RELU6) g = pick(u >= zero + 6.0f, zero, g);
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

/* Run the code with A, a constant, for `kind`, so that the compiler makes one loop for each activation. */
#define FOR_EACH_ACT(kind, ...)                                     \
    switch (kind) {                                                 \
        case RELU: { const int A = RELU; __VA_ARGS__; break; }      \
        case HARDSWISH: { const int A = HARDSWISH; __VA_ARGS__; break; } \
        case RELU6: { const int A = RELU6; __VA_ARGS__; break; }    \
        default: { const int A = NO_ACT; (void)A; __VA_ARGS__; }    \
    }

/* ---- batch norm, activation, gate ---- */

/* Of each channel the mean over rows, and the sum of squared distances from it. */
static void row_moments(const float *y, long rows, int C, double *mean, double *squares) {
    memset(mean, 0, sizeof(double) * C);
    memset(squares, 0, sizeof(double) * C);
    if (!rows) return;
    float *s = malloc(sizeof(float) * 2 * C), *s2 = s + C; /* distances from the first row, so that little cancels */
    for (long r = 0; r < rows; r += SUM_ROWS) {
        const long stop = r + SUM_ROWS < rows ? r + SUM_ROWS : rows;
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
        for (int j = 0; j < C; j++) mean[j] += s[j];
        for (int j = 0; j < C; j++) squares[j] += s2[j];
    }
    free(s);
    for (int j = 0; j < C; j++) {
        squares[j] -= mean[j] * mean[j] / rows;
        if (squares[j] < 0) squares[j] = 0; /* and NaN stays NaN */
        mean[j] = y[j] + mean[j] / rows;
    }
}

/* out = act(normalised y) * gate + residual. Gate [images, C] and residual [rows, C] may be absent; out may be y. */
static void affine(const float *y, long rows, int pixels, int C, const float *stats, int kind, const float *gate,
                   const float *residual, float *out) {
    FOR_EACH_ACT(kind,
        for (long r = 0; r < rows; r++) {
            const float *g = gate ? gate + r / pixels * C : NULL;
            for (int c = 0; c < C; c += LANES) {
                const int n = lanes_at(c, C);
                vec v = act(normalised(load(y + r * C + c, n), norm_at(stats, C, c, n)), A);
                if (g) v *= load(g + c, n);
                if (residual) v += load(residual + r * C + c, n);
                store(out + r * C + c, v, n);
            }
        })
}

/* out[image] = mean over pixels of act(normalised y); where `grad` is given, the sum over pixels of grad times that,
 * which is the gradient of `affine`'s gate. */
static void pool(const float *y, const float *grad, long images, int pixels, int C, const float *stats, int kind,
                 float *out) {
    const float factor = grad ? 1.0f : 1.0f / pixels;
    FOR_EACH_ACT(kind,
        for (long b = 0; b < images; b++)
            for (int c = 0; c < C; c += LANES) {
                const int n = lanes_at(c, C);
                const long first = b * pixels * C + c;
                const Norm norm = norm_at(stats, C, c, n);
                vec sum = {0};
                for (long at = first; at < first + (long)pixels * C; at += C) {
                    vec v = act(normalised(load(y + at, n), norm), A);
                    if (grad) v *= load(grad + at, n);
                    sum += v;
                }
                store(out + b * C + c, sum * factor, n);
            })
}

/* From the gradient after the gate to that before the activation, and what batch norm needs of it:
 * du = (grad * gate + spread) * act'(normalised y), sums[0] = sum of du, sums[1] = sum of du * (y - mean).
 * Gate and spread, [images, C], may be absent together. `du` may be `grad`, or absent where only sums are wanted. */
static void act_backward(const float *grad, const float *y, long rows, int pixels, int C, const float *stats, int kind,
                         const float *gate, const float *spread, float *du, double *sums) {
    float *f1 = malloc(sizeof(float) * 2 * (C + LANES)), *f2 = f1 + C + LANES;
    memset(sums, 0, sizeof(double) * 2 * C);
    for (long start = 0; start < rows; start += SUM_ROWS) {
        const long stop = start + SUM_ROWS < rows ? start + SUM_ROWS : rows;
        memset(f1, 0, sizeof(float) * 2 * (C + LANES));
        FOR_EACH_ACT(kind,
            for (long r = start; r < stop; r++) {
                const float *k = gate ? gate + r / pixels * C : NULL;
                const float *e = gate ? spread + r / pixels * C : NULL;
                for (int c = 0; c < C; c += LANES) {
                    const int n = lanes_at(c, C);
                    const Norm norm = norm_at(stats, C, c, n);
                    const vec x = load(y + r * C + c, n);
                    vec v = load(grad + r * C + c, n);
                    if (k) v = v * load(k + c, n) + load(e + c, n);
                    v = act_grad(v, normalised(x, norm), A);
                    if (du) store(du + r * C + c, v, n);
                    store(f1 + c, load(f1 + c, LANES) + v, LANES);
                    store(f2 + c, load(f2 + c, LANES) + v * (x - norm.mean), LANES);
                }
            })
        for (int j = 0; j < C; j++) sums[j] += f1[j];
        for (int j = 0; j < C; j++) sums[C + j] += f2[j];
    }
    free(f1);
}

/* A batch norm's input has the gradient c0 * du - c1 * (y - c2) - c3, with numbers [4][C]. */
typedef struct {
    vec c0, c1, c2, c3;
} Coefficients;

INLINE Coefficients coefficients_at(const float *k, int C, int c, int n) {
    return (Coefficients){load(k + c, n), load(k + C + c, n), load(k + 2 * C + c, n), load(k + 3 * C + c, n)};
}

INLINE vec norm_grad(vec du, vec y, Coefficients k) { return k.c0 * du - k.c1 * (y - k.c2) - k.c3; }

/* The gradient of a batch norm's input; `out` may be `du`. */
static void norm_backward(const float *du, const float *y, long rows, int C, const float *coefficients, float *out) {
    for (long r = 0; r < rows; r++)
        for (int c = 0; c < C; c += LANES) {
            const int n = lanes_at(c, C);
            const Coefficients k = coefficients_at(coefficients, C, c, n);
            store(out + r * C + c, norm_grad(load(du + r * C + c, n), load(y + r * C + c, n), k), n);
        }
}

/* ---- depthwise convolution ---- */

typedef struct {
    int height, width, channels;
    int kernel;  /* side of the weights given */
    int crop;    /* side of their centre that is used */
    int stride;
    int lead;    /* rows above and columns before the map that the first taps meet: half the crop, or one less */
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
    for (; at + 4 <= total; at += 4)
        taps_sum(to + at, 4, source + at * step, row_step, col_step, step, taps, tap_row_step, tap_col_step, tap_rows,
                 tap_cols);
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

/* out = act(normalised depthwise(act(normalised x))) of some images; the outer stats may be absent. */
static void depthwise(const float *x, long images, const Shape *shape, const vec *taps, const float *stats, int kind,
                      const float *out_stats, int out_kind, float *out) {
    const Shape s = *shape;
    const int rim = s.crop / 2, C = s.channels, tile_width = s.width + 2 * rim, shift = rim - s.lead;
    const int out_h = out_side(s.height, s.stride), out_w = out_side(s.width, s.stride);
    vec *tile = new_zeros((long)s.height * tile_width), *row = new_vecs(out_w);
    for (long b = 0; b < images; b++)
        for (int c = 0; c < C; c += LANES) {
            const int n = lanes_at(c, C);
            FOR_EACH_ACT(kind, fill_tile(tile, x + b * s.height * s.width * C + c, s.height, s.width, rim, C, n,
                                         norm_at(stats, C, c, n), A))
            const vec *tap = taps + c / LANES * s.crop * s.crop;
            for (int i = 0; i < out_h; i++) {
                /* Tap row t meets input row i * stride + t - lead. */
                const int first = max(0, s.lead - i * s.stride), last = min(s.crop, s.height + s.lead - i * s.stride);
                taps_row(row, out_w, tile + (i * s.stride + first - s.lead) * tile_width + shift, tile_width, 1, s.stride,
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

/* dtaps[t] += sum over the map of dy * tile, for COLS taps that lie side by side; SUMS of them at once in a row. */
INLINE void taps_grad_row(vec *dtaps, const int COLS, const int SUMS, const vec *tile, int tile_step, int stride,
                          const vec *dy, int dy_step, int rows, int cols) {
    vec sum[WIDEST];
    for (int k = 0; k < COLS * SUMS; k++) sum[k] = (vec){0};
    for (int i = 0; i < rows; i++) {
        const vec *g = dy + i * dy_step, *from = tile + i * tile_step;
        int j = 0;
        for (; j + SUMS <= cols; j += SUMS)
            for (int q = 0; q < SUMS; q++)
                for (int k = 0; k < COLS; k++) sum[q * COLS + k] += g[j + q] * from[(j + q) * stride + k];
        for (; j < cols; j++)
            for (int k = 0; k < COLS; k++) sum[k] += g[j] * from[j * stride + k];
    }
    for (int q = 0; q < SUMS; q++)
        for (int k = 0; k < COLS; k++) dtaps[k] += sum[q * COLS + k];
}

INLINE void taps_grad(vec *dtaps, const Shape *s, const vec *tile, int tile_width, const vec *dy, int dy_width, int out_h,
                      int out_w) {
    const int lead = s->lead, shift = s->crop / 2 - lead, step = s->stride * tile_width;
    for (int t = 0; t < s->crop; t++) {
        /* Output rows whose input row i * stride + t - lead lies in the map. */
        const int first = max(0, out_side(lead - t, s->stride));
        const int last = min(out_h, out_side(s->height + lead - t, s->stride));
        vec *to = dtaps + t * s->crop;
        const vec *from = tile + (first * s->stride + t - lead) * tile_width + shift, *g = dy + first * dy_width;
        switch (s->crop) {
            case 1: taps_grad_row(to, 1, 4, from, step, s->stride, g, dy_width, last - first, out_w); break;
            case 3: taps_grad_row(to, 3, 2, from, step, s->stride, g, dy_width, last - first, out_w); break;
            case 5: taps_grad_row(to, 5, 1, from, step, s->stride, g, dy_width, last - first, out_w); break;
            case 7: taps_grad_row(to, 7, 1, from, step, s->stride, g, dy_width, last - first, out_w); break;
            default:
                for (int k = 0; k < s->crop; k++)
                    taps_grad_row(to + k, 1, 1, from + k, step, s->stride, g, dy_width, last - first, out_w);
        }
    }
}

/* The gradient of one input map: dx = act'(normalised x) * depthwise transposed(dy), and its sums. */
INLINE void map_grad(const vec *dy, int dy_width, int out_h, const Shape *s, const vec *taps, const float *map, float *dx,
                     int n, Norm norm, vec *row, vec *sum1, vec *sum2, const int A) {
    const int rim = s->crop / 2, lead = s->lead, C = s->channels, stride = s->stride;
    for (int i = 0; i < s->height; i++) {
        /* Taps that reach input row i are i + lead - stride * o for output rows o: every stride-th, from `first`. */
        const int last = min(out_h - 1, (i + lead) / stride), first = i + lead - stride * last;
        const int count = first < s->crop ? min(last + 1, out_side(s->crop - first, stride)) : 0;
        for (int q = 0; q < stride && q < s->width; q++) {
            const int tap = (q + lead) % stride, outputs = out_side(s->width - q, stride);
            taps_row(row, outputs, dy + last * dy_width + rim + (q + lead - tap) / stride, -dy_width, -1, 1,
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

/* Backward of `depthwise` between two batch norms, for some images. The gradient of its output is `norm_grad` of du and
 * y. Gives dx before the inner activation, the sums that the inner batch norm needs, as `act_backward`, and adds to
 * dtaps, [chunks][crop * crop]. */
static void depthwise_backward(const float *du, const float *y, const float *coefficients, const float *x, long images,
                               const Shape *shape, const vec *taps, const float *stats, int kind, vec *dtaps, float *dx,
                               double *sums) {
    const Shape s = *shape;
    const int rim = s.crop / 2, C = s.channels, area = s.crop * s.crop;
    const int out_h = out_side(s.height, s.stride), out_w = out_side(s.width, s.stride);
    const int tile_width = s.width + 2 * rim, dy_width = out_w + 2 * rim;
    vec *tile = new_zeros((long)s.height * tile_width), *dy = new_zeros((long)out_h * dy_width), *row = new_vecs(s.width);
    memset(sums, 0, sizeof(double) * 2 * C);
    for (long b = 0; b < images; b++)
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
            taps_grad(dtaps + (long)chunk * area, &s, tile, tile_width, dy + rim, dy_width, out_h, out_w);
            vec sum1 = {0}, sum2 = {0};
            FOR_EACH_ACT(kind, map_grad(dy, dy_width, out_h, &s, taps + (long)chunk * area, map,
                                        dx + b * s.height * s.width * C + c, n, norm, row, &sum1, &sum2, A))
            for (int lane = 0; lane < n; lane++) sums[c + lane] += sum1[lane];
            for (int lane = 0; lane < n; lane++) sums[C + c + lane] += sum2[lane];
        }
    free(tile);
    free(dy);
    free(row);
}
