/* An MBConv block, and a batch norm with activation, forward and backward, each as one call.
 *
 * Every worker takes a share of the images through the whole block, so that what it wrote last is still in its cache;
 * workers wait for each other only where a sum over all images is needed. The loops are in `loops.h`, the matrix
 * products, each worker's by itself, in `products.h`, what makes images in `images.h`.
 */
#include "loops.h"
#include "products.h"
#include "shares.h"
#include "images.h"

/* ---- matrix products over all shares ---- */

/* `product` of all workers, each with a share of C's rows. */
void matrix_product(int a_way, const float *a, int lda, int b_way, const float *b, int ldb, float *c, int ldc, int m, int n,
                    int k, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Share me = share_of(m);
        product(a_way, a + me.first * (a_way ? 1 : lda), lda, b_way, b, ldb, 0, c + me.first * ldc, ldc, me.count, n, k);
    }
}

/* ---- batch norm over all shares ---- */

typedef struct {
    const float *weight, *bias;
    float *running_mean, *running_var;
} NormTensors;

/* The stats of all workers' rows, `pixels` an image. The running statistics move by `momentum`, the variance without
 * bias, as torch's do. `sums` is [parts][2][C] of room. */
static void batch_stats(Share me, const float *y, long images, int pixels, int C, const NormTensors *norm, float momentum,
                        float eps, float *stats, double *sums) {
    const long rows = images * pixels;
    double *mine = sums + (size_t)me.part * 2 * C;
    row_moments(y + me.first * pixels * C, me.count * pixels, C, mine, mine + C);
    wait_for_all();
    for (long j = part_start(C, me.part, me.parts); j < part_start(C, me.part + 1, me.parts); j++) {
        double mean = 0, squares = 0;
        for (int p = 0; p < me.parts; p++)
            mean += sums[(size_t)p * 2 * C + j] *
                    ((part_start(images, p + 1, me.parts) - part_start(images, p, me.parts)) * pixels) / rows;
        for (int p = 0; p < me.parts; p++) { /* Chan's formula, so that nothing cancels */
            const long count = (part_start(images, p + 1, me.parts) - part_start(images, p, me.parts)) * pixels;
            const double apart = sums[(size_t)p * 2 * C + j] - mean;
            squares += sums[(size_t)p * 2 * C + C + j] + count * apart * apart;
        }
        const double rstd = 1 / sqrt(squares / rows + eps);
        stats[j] = (float)mean;
        stats[C + j] = (float)rstd;
        stats[2 * C + j] = (float)(norm->weight[j] * rstd);
        stats[3 * C + j] = norm->bias[j];
        norm->running_mean[j] += momentum * ((float)mean - norm->running_mean[j]);
        norm->running_var[j] += momentum * ((float)(squares / (rows - 1)) - norm->running_var[j]);
    }
    wait_for_all();
}

/* The stats of evaluation mode. */
static void fixed_stats(int C, const NormTensors *norm, float eps, float *stats) {
    for (int j = 0; j < C; j++) {
        stats[j] = norm->running_mean[j];
        stats[C + j] = 1 / sqrtf(norm->running_var[j] + eps);
        stats[2 * C + j] = norm->weight[j] * stats[C + j];
        stats[3 * C + j] = norm->bias[j];
    }
}

/* The stats of a batch norm that changes nothing. */
static void identity_stats(int C, float *stats) {
    for (int j = 0; j < C; j++) stats[j] = stats[3 * C + j] = 0;
    for (int j = 0; j < C; j++) stats[C + j] = stats[2 * C + j] = 1;
}

/* From every worker's sums of du and du * (y - mean), [parts][2][C], the gradients of batch norm's weight and bias, [whole]
 * and zero from C on, and the coefficients of its input's gradient (see `norm_grad`). */
static void norm_gradients(Share me, const double *sums, long rows, int C, const float *stats, int whole, float *dweight,
                           float *dbias, float *coefficients) {
    const float *mean = stats, *rstd = stats + C, *scale = stats + 2 * C;
    wait_for_all();
    for (long j = part_start(whole, me.part, me.parts); j < part_start(whole, me.part + 1, me.parts); j++) {
        double dbeta = 0, dgamma = 0;
        for (int p = 0; j < C && p < me.parts; p++) {
            dbeta += sums[(size_t)p * 2 * C + j];
            dgamma += sums[(size_t)p * 2 * C + C + j] * rstd[j];
        }
        dweight[j] = (float)dgamma;
        dbias[j] = (float)dbeta;
        if (j >= C) continue;
        coefficients[j] = scale[j];
        coefficients[C + j] = (float)(scale[j] * rstd[j] * dgamma / rows);
        coefficients[2 * C + j] = mean[j];
        coefficients[3 * C + j] = (float)(scale[j] * dbeta / rows);
    }
    wait_for_all();
}

/* out = act(batch norm(y)) over rows of images; gives the stats. */
void norm_act_forward(const float *y, long images, int pixels, int C, const NormTensors *norm, int kind, float momentum,
                      float eps, float *stats, float *out, int threads) {
    double *sums = malloc(sizeof(double) * threads * 2 * C);
#pragma omp parallel num_threads(threads)
    {
        const Share me = share_of(images);
        const long at = me.first * pixels * C;
        batch_stats(me, y, images, pixels, C, norm, momentum, eps, stats, sums);
        affine(y + at, me.count * pixels, pixels, C, stats, kind, NULL, NULL, out + at);
    }
    free(sums);
}

/* Its backward, from the gradient of `out`. */
void norm_act_backward(const float *grad, const float *y, long images, int pixels, int C, const float *stats, int kind,
                       float *dweight, float *dbias, float *dy, int threads) {
    double *sums = malloc(sizeof(double) * threads * 2 * C);
    float *coefficients = malloc(sizeof(float) * 4 * C);
#pragma omp parallel num_threads(threads)
    {
        const Share me = share_of(images);
        const long at = me.first * pixels * C, rows = me.count * pixels;
        act_backward(grad + at, y + at, rows, pixels, C, stats, kind, NULL, NULL, dy + at, sums + (size_t)me.part * 2 * C);
        norm_gradients(me, sums, images * pixels, C, stats, C, dweight, dbias, coefficients);
        norm_backward(dy + at, y + at, rows, C, coefficients, dy + at);
    }
    free(sums);
    free(coefficients);
}

/* ---- the block ---- */

enum { EXPAND = 0, DEPTHWISE = 1, PROJECT = 2, NORMS = 3 };

/* A block: input [images, height, width, in_channels], expanded to `mid` channels or, without expand_weight, as wide as it came;
 * depthwise; with `squeezed` channels in squeeze-excite or, at 0, without it; projected to `out`. Pointwise weights are
 * [out, in] and the first rows and columns of whole ones of `whole_mid` and `whole_squeezed` channels. */
typedef struct {
    long images;
    int height, width, in_channels, mid, out, squeezed, whole_mid, whole_squeezed;
    int kernel, crop, stride, lead; /* the side of the kernel, and of its centre that is used; see `Shape` */
    int kind;                 /* of activation */
    int residual, threads;
    float momentum, eps;
    const float *expand_weight, *kernel_weight, *reduce_weight, *reduce_bias, *grow_weight, *grow_bias, *project_weight;
    NormTensors norms[NORMS];
} Block;

/* What backward needs of forward. Without expansion `expanded` is the input. */
typedef struct {
    float *expanded, *convolved, *gated, *projected, *pooled, *hidden, *gate_logits, *gate, *stats[NORMS];
} Saved;

/* Where gradients of the whole weights go. That of the kernel is of the cut, [mid, kernel, kernel]. */
typedef struct {
    float *expand_weight, *kernel_weight, *reduce_weight, *reduce_bias, *grow_weight, *grow_bias, *project_weight;
    float *norm_weight[NORMS], *norm_bias[NORMS];
} Gradients;

INLINE Shape shape_of(const Block *b) {
    return (Shape){b->height, b->width, b->mid, b->kernel, b->crop, b->stride, b->lead};
}
INLINE int in_pixels(const Block *b) { return b->height * b->width; }
INLINE int out_pixels(const Block *b) { return out_side(b->height, b->stride) * out_side(b->width, b->stride); }
INLINE int first_kind(const Block *b) { return b->expand_weight ? b->kind : NO_ACT; }

/* Hands out pieces of one stretch of memory; from NULL it only counts. */
static float *take(float **room, long *used, long count) {
    float *piece = *room ? *room + *used : NULL;
    *used += (count + 15) / 16 * 16; /* whole cache lines */
    return piece;
}

/* Lays out what is saved of a block in `room`; gives the floats it takes. */
static long lay_out(const Block *b, float *room, Saved *s) {
    long used = 0;
    const long before = b->images * in_pixels(b), after = b->images * out_pixels(b);
    s->expanded = b->expand_weight ? take(&room, &used, before * b->mid) : NULL;
    s->convolved = take(&room, &used, after * b->mid);
    s->gated = take(&room, &used, after * b->mid);
    s->projected = take(&room, &used, after * b->out);
    s->stats[EXPAND] = take(&room, &used, 4 * b->mid);
    s->stats[DEPTHWISE] = take(&room, &used, 4 * b->mid);
    s->stats[PROJECT] = take(&room, &used, 4 * b->out);
    const long squeezes = b->squeezed ? b->images : 0;
    s->pooled = take(&room, &used, squeezes * b->mid);
    s->hidden = take(&room, &used, squeezes * b->squeezed);
    s->gate_logits = take(&room, &used, squeezes * b->mid);
    s->gate = take(&room, &used, squeezes * b->mid);
    return used;
}

/* How many floats `block_forward` saves. */
long block_saved_floats(const Block *b) {
    Saved s;
    return lay_out(b, NULL, &s);
}

/* Squeeze-excite's gate of some images, from their pooled channels. */
static void squeeze(const Block *b, long images, const float *pooled, float *hidden, float *logits, float *gate) {
    product(AS_IS, pooled, b->mid, TRANSPOSED, b->reduce_weight, b->whole_mid, 0, hidden, b->squeezed, images, b->squeezed,
            b->mid);
    for (long i = 0; i < images; i++)
        for (int j = 0; j < b->squeezed; j++) {
            const float v = hidden[i * b->squeezed + j] + b->reduce_bias[j];
            hidden[i * b->squeezed + j] = v < 0 ? 0 : v; /* NaN stays NaN */
        }
    product(AS_IS, hidden, b->squeezed, TRANSPOSED, b->grow_weight, b->whole_squeezed, 0, logits, b->mid, images, b->mid,
            b->squeezed);
    for (long i = 0; i < images; i++)
        for (int j = 0; j < b->mid; j++) {
            const float v = logits[i * b->mid + j] + b->grow_bias[j], t = v + 3;
            logits[i * b->mid + j] = v;
            gate[i * b->mid + j] = (t < 0 ? 0 : t > 6 ? 6 : t) / 6;
        }
}

static int most_channels(const Block *b) { return max(b->mid, b->out); }

/* Training: x [images, height, width, in_channels] to out, by the batch's statistics. `saved` has room for what backward needs. */
void block_forward(const Block *b, const float *x, float *saved, float *out) {
    Saved s;
    lay_out(b, saved, &s);
    const Shape shape = shape_of(b);
    const int before = in_pixels(b), after = out_pixels(b), mid = b->mid;
    const float *expanded = b->expand_weight ? s.expanded : x;
    vec *taps = new_taps(b->kernel_weight, &shape);
    double *sums = malloc(sizeof(double) * b->threads * 2 * most_channels(b));
    if (!b->expand_weight) identity_stats(mid, s.stats[EXPAND]);
#pragma omp parallel num_threads(b->threads)
    {
        const Share me = share_of(b->images);
        const long in_row = me.first * before, out_row = me.first * after, rows = me.count * after;
        const float *my_x = x + in_row * b->in_channels;
        float *my_convolved = s.convolved + out_row * mid, *my_gated = s.gated + out_row * mid;
        float *my_projected = s.projected + out_row * b->out, *my_gate = NULL;
        if (b->expand_weight) {
            product(AS_IS, my_x, b->in_channels, TRANSPOSED, b->expand_weight, b->in_channels, 0, s.expanded + in_row * mid, mid,
                    me.count * before, mid, b->in_channels);
            batch_stats(me, s.expanded, b->images, before, mid, &b->norms[EXPAND], b->momentum, b->eps, s.stats[EXPAND],
                        sums);
        }
        depthwise(expanded + in_row * mid, me.count, &shape, taps, s.stats[EXPAND], first_kind(b), NULL, NO_ACT,
                  my_convolved);
        batch_stats(me, s.convolved, b->images, after, mid, &b->norms[DEPTHWISE], b->momentum, b->eps, s.stats[DEPTHWISE],
                    sums);
        if (b->squeezed) {
            const long at = me.first * mid;
            my_gate = s.gate + at;
            pool(my_convolved, NULL, me.count, after, mid, s.stats[DEPTHWISE], b->kind, s.pooled + at);
            squeeze(b, me.count, s.pooled + at, s.hidden + me.first * b->squeezed, s.gate_logits + at, my_gate);
        }
        affine(my_convolved, rows, after, mid, s.stats[DEPTHWISE], b->kind, my_gate, NULL, my_gated);
        product(AS_IS, my_gated, mid, TRANSPOSED, b->project_weight, b->whole_mid, 0, my_projected, b->out, rows, b->out,
                mid);
        batch_stats(me, s.projected, b->images, after, b->out, &b->norms[PROJECT], b->momentum, b->eps, s.stats[PROJECT],
                    sums);
        affine(my_projected, rows, after, b->out, s.stats[PROJECT], NO_ACT, NULL, b->residual ? my_x : NULL,
               out + out_row * b->out);
    }
    free(taps);
    free(sums);
}

/* ---- fixed statistics ---- */

#define CHUNK_FLOATS 262144 /* of a chunk's maps: few enough for a cache, enough for products to be worth it */

/* Evaluation: as `block_forward` with the running statistics. Every image goes its way alone, a chunk at a time. */
void block_infer(const Block *b, const float *x, float *out) {
    const Shape shape = shape_of(b);
    const int before = in_pixels(b), after = out_pixels(b), mid = b->mid;
    const long chunk = max(1, CHUNK_FLOATS / (max(before, after) * mid));
    float *room = NULL, *stats[NORMS + 1];
    long used = 0;
    for (int pass = 0; pass < 2; pass++) { /* counts, then hands out */
        used = 0;
        for (int i = 0; i < NORMS; i++) stats[i] = take(&room, &used, 4 * (i == PROJECT ? b->out : mid));
        stats[NORMS] = take(&room, &used, 4 * mid);
        if (!pass) room = malloc(sizeof(float) * used);
    }
    if (b->expand_weight) fixed_stats(mid, &b->norms[EXPAND], b->eps, stats[EXPAND]);
    else identity_stats(mid, stats[EXPAND]);
    fixed_stats(mid, &b->norms[DEPTHWISE], b->eps, stats[DEPTHWISE]);
    fixed_stats(b->out, &b->norms[PROJECT], b->eps, stats[PROJECT]);
    identity_stats(mid, stats[NORMS]);
    vec *taps = new_taps(b->kernel_weight, &shape);
#pragma omp parallel num_threads(b->threads)
    {
        const Share me = share_of(b->images);
        float *expanded = malloc(sizeof(float) * chunk * before * mid), *convolved = malloc(sizeof(float) * chunk * after * mid);
        float *squeezes = malloc(sizeof(float) * chunk * (3 * mid + b->squeezed));
        float *logits = squeezes + chunk * mid, *gate = logits + chunk * mid, *hidden = gate + chunk * mid;
        for (long i = me.first; i < me.first + me.count; i += chunk) {
            const long count = i + chunk < me.first + me.count ? chunk : me.first + me.count - i;
            const float *my_x = x + i * before * b->in_channels, *wide = my_x;
            float *my_out = out + i * after * b->out;
            if (b->expand_weight) {
                product(AS_IS, my_x, b->in_channels, TRANSPOSED, b->expand_weight, b->in_channels, 0, expanded, mid, count * before, mid,
                        b->in_channels);
                wide = expanded;
            }
            depthwise(wide, count, &shape, taps, stats[EXPAND], first_kind(b), stats[DEPTHWISE], b->kind, convolved);
            if (b->squeezed) {
                pool(convolved, NULL, count, after, mid, stats[NORMS], NO_ACT, squeezes);
                squeeze(b, count, squeezes, hidden, logits, gate);
                affine(convolved, count * after, after, mid, stats[NORMS], NO_ACT, gate, NULL, convolved);
            }
            product(AS_IS, convolved, mid, TRANSPOSED, b->project_weight, b->whole_mid, 0, my_out, b->out, count * after,
                    b->out, mid);
            affine(my_out, count * after, after, b->out, stats[PROJECT], NO_ACT, NULL, b->residual ? my_x : NULL, my_out);
        }
        free(expanded);
        free(convolved);
        free(squeezes);
    }
    free(room);
    free(taps);
}

/* ---- backward ---- */

/* Sets what lies beyond the first rows and columns to zero, in the worker's share of rows. */
static void zero_beyond(Share me, float *whole, int rows, int columns, int whole_rows, int whole_columns) {
    for (long r = part_start(whole_rows, me.part, me.parts); r < part_start(whole_rows, me.part + 1, me.parts); r++) {
        const int from = r < rows ? columns : 0;
        memset(whole + r * whole_columns + from, 0, sizeof(float) * (whole_columns - from));
    }
}

/* The column sums of a worker's share of columns; zero from `columns` on. */
static void column_sums(Share me, const float *values, long rows, int columns, int whole, float *sums) {
    const long first = part_start(whole, me.part, me.parts), end = part_start(whole, me.part + 1, me.parts);
    memset(sums + first, 0, sizeof(float) * (end - first));
    for (long r = 0; r < rows; r++)
        for (long j = first; j < end && j < columns; j++) sums[j] += values[r * columns + j];
}

/* A worker's share of a pointwise weight's gradient, left^T right: [out, in] of whole [., ldc], cut along the longer. */
static void weight_gradient(Share me, const float *left, int out, const float *right, int in, long rows, float *grad,
                            int ldc) {
    if (out >= in) {
        const int o = part_start(out, me.part, me.parts), count = part_start(out, me.part + 1, me.parts) - o;
        product(TRANSPOSED, left + o, out, AS_IS, right, in, 0, grad + (long)o * ldc, ldc, count, in, rows);
    } else {
        const int i = part_start(in, me.part, me.parts), count = part_start(in, me.part + 1, me.parts) - i;
        product(TRANSPOSED, left, out, AS_IS, right + i, in, 0, grad + i, ldc, out, count, rows);
    }
}

/* The gradient of the kernel from every worker's dtaps, for the worker's share of channels; zero on the rim. */
static void kernel_gradient(Share me, const Shape *s, const vec *dtaps, float *grad) {
    const int area = s->crop * s->crop, rim = (s->kernel - s->crop) / 2, chunks = chunks_of(s->channels);
    const long first = part_start(s->channels, me.part, me.parts), end = part_start(s->channels, me.part + 1, me.parts);
    memset(grad + first * s->kernel * s->kernel, 0, sizeof(float) * (end - first) * s->kernel * s->kernel);
    for (long c = first; c < end; c++)
        for (int t = 0; t < area; t++) {
            float *to = grad + (c * s->kernel + rim + t / s->crop) * s->kernel + rim + t % s->crop;
            for (int p = 0; p < me.parts; p++) *to += dtaps[((long)p * chunks + c / LANES) * area + t][c % LANES];
        }
}

/* Room that the workers of one backward pass share. */
typedef struct {
    float *dprojected, *du, *dexpanded, *dlogits, *dhidden, *spread, *coefficients;
} Scratch;

static long lay_out_scratch(const Block *b, float *room, Scratch *t) {
    long used = 0;
    const long before = b->images * in_pixels(b), after = b->images * out_pixels(b);
    const long squeezes = b->squeezed ? b->images : 0;
    t->dprojected = take(&room, &used, after * b->out);
    t->du = take(&room, &used, after * b->mid);
    t->dexpanded = take(&room, &used, b->expand_weight ? before * b->mid : 0);
    t->dlogits = take(&room, &used, squeezes * b->mid);
    t->dhidden = take(&room, &used, squeezes * b->squeezed);
    t->spread = take(&room, &used, squeezes * b->mid);
    t->coefficients = take(&room, &used, 4 * most_channels(b));
    return used;
}

/* From the gradient at the gate to that of what was pooled, spread over the pixels: the worker's images. */
static void squeeze_backward(const Block *b, Share me, const Saved *s, const Scratch *t) {
    const int mid = b->mid, squeezed = b->squeezed, after = out_pixels(b);
    const long at = me.first * mid, at_hidden = me.first * squeezed;
    float *dlogits = t->dlogits + at, *dhidden = t->dhidden + at_hidden, *spread = t->spread + at;
    pool(s->convolved + me.first * after * mid, t->du + me.first * after * mid, me.count, after, mid, s->stats[DEPTHWISE],
         b->kind, dlogits);
    for (long i = 0; i < me.count * mid; i++) { /* the derivative of torch's hardsigmoid */
        const float v = s->gate_logits[at + i];
        dlogits[i] = v > -3 && v < 3 ? dlogits[i] / 6 : 0;
    }
    product(AS_IS, dlogits, mid, AS_IS, b->grow_weight, b->whole_squeezed, 0, dhidden, squeezed, me.count, squeezed, mid);
    for (long i = 0; i < me.count * squeezed; i++) dhidden[i] = s->hidden[at_hidden + i] > 0 ? dhidden[i] : 0;
    product(AS_IS, dhidden, squeezed, AS_IS, b->reduce_weight, b->whole_mid, 0, spread, mid, me.count, mid, squeezed);
    for (long i = 0; i < me.count * mid; i++) spread[i] /= after;
}

/* The gradients of squeeze-excite's weights, after all workers' `squeeze_backward`. */
static void squeeze_gradients(const Block *b, Share me, const Saved *s, const Scratch *t, const Gradients *g) {
    const int mid = b->mid, squeezed = b->squeezed, whole = b->whole_mid, whole_squeezed = b->whole_squeezed;
    zero_beyond(me, g->grow_weight, mid, squeezed, whole, whole_squeezed);
    zero_beyond(me, g->reduce_weight, squeezed, mid, whole_squeezed, whole);
    weight_gradient(me, t->dlogits, mid, s->hidden, squeezed, b->images, g->grow_weight, whole_squeezed);
    weight_gradient(me, t->dhidden, squeezed, s->pooled, mid, b->images, g->reduce_weight, whole);
    column_sums(me, t->dlogits, b->images, mid, whole, g->grow_bias);
    column_sums(me, t->dhidden, b->images, squeezed, whole_squeezed, g->reduce_bias);
}

/* From the gradient of `out` that of x, and those of all weights, each whole: zero beyond the cut. */
void block_backward(const Block *b, const float *x, float *saved, const float *dout, const Gradients *g, float *dx) {
    Saved s;
    Scratch t;
    lay_out(b, saved, &s);
    float *room = malloc(sizeof(float) * lay_out_scratch(b, NULL, &t));
    lay_out_scratch(b, room, &t);
    const Shape shape = shape_of(b);
    const int before = in_pixels(b), after = out_pixels(b), mid = b->mid, out = b->out;
    const long chunk_taps = (long)chunks_of(mid) * b->crop * b->crop;
    const float *expanded = b->expand_weight ? s.expanded : x;
    float *dexpanded = b->expand_weight ? t.dexpanded : dx;
    vec *taps = new_taps(b->kernel_weight, &shape), *dtaps = new_zeros(b->threads * chunk_taps);
    double *sums = malloc(sizeof(double) * b->threads * 2 * most_channels(b));
#pragma omp parallel num_threads(b->threads)
    {
        const Share me = share_of(b->images);
        const long in_row = me.first * before, out_row = me.first * after, rows = me.count * after;
        const float *my_dout = dout + out_row * out, *my_projected = s.projected + out_row * out;
        const float *my_convolved = s.convolved + out_row * mid;
        float *my_dprojected = t.dprojected + out_row * out, *my_du = t.du + out_row * mid;
        float *my_dx = dx + in_row * b->in_channels, *my_dexpanded = dexpanded + in_row * mid;

        act_backward(my_dout, my_projected, rows, after, out, s.stats[PROJECT], NO_ACT, NULL, NULL, NULL,
                     sums + (size_t)me.part * 2 * out);
        norm_gradients(me, sums, b->images * after, out, s.stats[PROJECT], out, g->norm_weight[PROJECT],
                       g->norm_bias[PROJECT], t.coefficients);
        norm_backward(my_dout, my_projected, rows, out, t.coefficients, my_dprojected);
        product(AS_IS, my_dprojected, out, AS_IS, b->project_weight, b->whole_mid, 0, my_du, mid, rows, mid, out);
        if (b->squeezed) squeeze_backward(b, me, &s, &t);
        act_backward(my_du, my_convolved, rows, after, mid, s.stats[DEPTHWISE], b->kind,
                     b->squeezed ? s.gate + me.first * mid : NULL, b->squeezed ? t.spread + me.first * mid : NULL, my_du,
                     sums + (size_t)me.part * 2 * mid);
        norm_gradients(me, sums, b->images * after, mid, s.stats[DEPTHWISE], b->whole_mid, g->norm_weight[DEPTHWISE],
                       g->norm_bias[DEPTHWISE], t.coefficients);
        zero_beyond(me, g->project_weight, out, mid, out, b->whole_mid);
        weight_gradient(me, t.dprojected, out, s.gated, mid, b->images * after, g->project_weight, b->whole_mid);
        if (b->squeezed) squeeze_gradients(b, me, &s, &t, g);
        depthwise_backward(my_du, my_convolved, t.coefficients, expanded + in_row * mid, me.count, &shape, taps,
                           s.stats[EXPAND], first_kind(b), dtaps + me.part * chunk_taps, my_dexpanded,
                           sums + (size_t)me.part * 2 * mid);
        if (b->expand_weight) {
            norm_gradients(me, sums, b->images * before, mid, s.stats[EXPAND], b->whole_mid, g->norm_weight[EXPAND],
                           g->norm_bias[EXPAND], t.coefficients);
            norm_backward(my_dexpanded, s.expanded + in_row * mid, me.count * before, mid, t.coefficients, my_dexpanded);
            if (b->residual) memcpy(my_dx, my_dout, sizeof(float) * rows * out);
            product(AS_IS, my_dexpanded, mid, AS_IS, b->expand_weight, b->in_channels, b->residual, my_dx, b->in_channels, me.count * before,
                    b->in_channels, mid);
        } else if (b->residual) {
            for (long i = 0; i < rows * out; i++) my_dx[i] += my_dout[i];
        }
        wait_for_all();
        kernel_gradient(me, &shape, dtaps, g->kernel_weight);
        if (b->expand_weight) {
            zero_beyond(me, g->expand_weight, mid, b->in_channels, b->whole_mid, b->in_channels);
            weight_gradient(me, t.dexpanded, mid, x, b->in_channels, b->images * before, g->expand_weight, b->in_channels);
        }
    }
    free(room);
    free(taps);
    free(dtaps);
    free(sums);
}
