/* What is done to images before a network sees them: varied in one pass over them, and made smaller.
 *
 * The numbers are those of torch's operators, rounded where theirs are: grid_sample (bilinear, borders repeated),
 * interpolate (bilinear, antialiased), products and sums by themselves. They are so to the last bit where this is
 * compiled for a processor that joins a product and a sum, as torch does there; but not at less than half the side.
 */
#include <stdint.h>

#define BRIGHTEST 255.0f

/* a * b + c, rounded once where the processor can */
INLINE float joined(float a, float b, float c) {
#if defined __FMA__ || defined __aarch64__
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* Images to be varied: uint8 [images][channels][height][width]. */
typedef struct {
    const uint8_t *pixels;
    long images;
    int channels, height, width, threads;
    const float *columns, *rows;            /* [images][width] and [height]: where to sample, from -1 to 1 */
    const float *brightness, *saturation;   /* [images]: factors; NULL for none */
    const float *grey, *mean, *std;         /* [channels]: of grey; taken off and divided by, in 0 to 255 */
    float *out;                             /* [images][height][width][channels] */
} Images;

/* Between which pixels of a side of `size` a place from -1 to 1 lies, and how far from the first. */
INLINE float between(float place, int size, int *first, int *second) {
    float at = joined(place + 1.0f, size * 0.5f, -0.5f);
    at = at > 0.0f ? at : 0.0f; /* and what is no number */
    at = at > size - 1 ? (float)(size - 1) : at;
    const float before = floorf(at);
    *first = (int)before;
    *second = *first + 1 < size ? *first + 1 : size - 1;
    return at - before;
}

/* Of a row of pixels those at `first` and at `second`; `room` is for the row. */
static void row_at(const uint8_t *row, int width, const int *first, const int *second, float *room, float *firsts, float *seconds) {
    for (int x = 0; x < width; x++) room[x] = row[x];
    for (int x = 0; x < width; x++) firsts[x] = room[first[x]];
    for (int x = 0; x < width; x++) seconds[x] = room[second[x]];
}

INLINE float cut(float value) {
    value = value < 0.0f ? 0.0f : value;
    return value > BRIGHTEST ? BRIGHTEST : value;
}

/* Brightness, saturation and normalisation of a row [channels][width], then into [width][channels]. */
static void finish_row(const Images *im, long image, float *row, float *grey, float *to) {
    const int width = im->width, channels = im->channels;
    if (im->brightness) {
        const float factor = im->brightness[image];
        for (int x = 0; x < channels * width; x++) row[x] = cut(row[x] * factor);
    }
    if (im->saturation) {
        const float factor = im->saturation[image], rest = 1.0f - factor;
        for (int x = 0; x < width; x++) grey[x] = row[x] * im->grey[0];
        for (int c = 1; c < channels; c++)
            for (int x = 0; x < width; x++) grey[x] = joined(row[c * width + x], im->grey[c], grey[x]);
        for (int x = 0; x < width; x++) grey[x] *= rest;
        for (int x = 0; x < channels * width; x++) row[x] *= factor; /* by itself: a product joined to the sum rounds once */
        for (int c = 0; c < channels; c++)
            for (int x = 0; x < width; x++) row[c * width + x] = cut(row[c * width + x] + grey[x]);
    }
    for (int c = 0; c < channels; c++) {
        const float mean = im->mean[c], std = im->std[c];
        for (int x = 0; x < width; x++) row[c * width + x] = (row[c * width + x] - mean) / std;
    }
    if (channels == 3) {
        for (int x = 0; x < width; x++) {
            to[3 * x] = row[x];
            to[3 * x + 1] = row[width + x];
            to[3 * x + 2] = row[2 * width + x];
        }
    } else {
        for (int c = 0; c < channels; c++)
            for (int x = 0; x < width; x++) to[x * channels + c] = row[c * width + x];
    }
}

/* One image. `places` is room for 2 * width numbers, `room` for (5 * channels + 4) * width. */
static void vary_image(const Images *im, long image, int *places, float *room) {
    const int width = im->width, height = im->height, channels = im->channels;
    const uint8_t *from = im->pixels + image * channels * height * width;
    float *upper = room, *lower = upper + 2 * channels * width, *row = lower + 2 * channels * width;
    float *west = row + channels * width, *east = west + width, *spare = east + width, *grey = spare + width;
    int *first = places, *second = places + width, in_upper = -1, in_lower = -1;
    for (int x = 0; x < width; x++) {
        east[x] = between(im->columns[image * width + x], width, first + x, second + x);
        west[x] = 1.0f - east[x];
    }
    for (int y = 0; y < height; y++) {
        int above, below;
        const float south = between(im->rows[image * height + y], height, &above, &below), north = 1.0f - south;
        if (in_lower == above) { /* what was below is above now */
            float *other = upper;
            const int in_other = in_upper;
            upper = lower, in_upper = in_lower;
            lower = other, in_lower = in_other;
        }
        for (int c = 0; c < channels; c++) {
            const uint8_t *map = from + (long)c * height * width;
            float *one = upper + 2 * c * width, *other = lower + 2 * c * width;
            if (in_upper != above) row_at(map + above * width, width, first, second, spare, one, one + width);
            if (in_lower != below) row_at(map + below * width, width, first, second, spare, other, other + width);
        }
        in_upper = above, in_lower = below;
        for (int c = 0; c < channels; c++) {
            const float *nw = upper + 2 * c * width, *ne = nw + width, *sw = lower + 2 * c * width, *se = sw + width;
            for (int x = 0; x < width; x++) {
                const float above_them = joined(ne[x], north * east[x], nw[x] * (north * west[x]));
                row[c * width + x] = joined(se[x], south * east[x], joined(sw[x], south * west[x], above_them));
            }
        }
        finish_row(im, image, row, grey, im->out + (image * height + y) * (long)width * channels);
    }
}

void vary_images(const Images *im) {
#pragma omp parallel num_threads(im->threads)
    {
        const Share me = share_of(im->images);
        int *places = malloc(sizeof(int) * 2 * im->width);
        float *room = malloc(sizeof(float) * (5 * im->channels + 4) * im->width);
        for (long i = me.first; i < me.first + me.count; i++) vary_image(im, i, places, room);
        free(room);
        free(places);
    }
}

/* ---- images of another size ---- */

/* How a side gets another length: for each new pixel the first old one that counts, how many do, and how much each. */
typedef struct {
    int old, new, most;
    const int *first, *count;
    const float *weights; /* [new][most] */
} SideWeights;

typedef float pixel __attribute__((vector_size(16), aligned(4), may_alias)); /* three colours and what comes after */

/* A row of `channels` numbers a pixel. With three one number is read and written beyond the row. */
/* Products are joined by name: left to itself GCC joins none in such a sum where it compiles for Zen 3. */
INLINE void resize_row(const SideWeights *by, const float *from, int channels, float *to) {
    for (int x = 0; x < by->new; x++) {
        const float *old = from + (long)by->first[x] * channels, *weights = by->weights + (long)x * by->most;
        if (channels == 3) {
            pixel sum = *(const pixel *)old * weights[0];
            for (int i = 1; i < by->count[x]; i++) {
                const pixel next = *(const pixel *)(old + 3 * i);
                for (int c = 0; c < 4; c++) sum[c] = joined(next[c], weights[i], sum[c]);
            }
            *(pixel *)(to + 3 * x) = sum;
        } else {
            for (int c = 0; c < channels; c++) {
                float sum = old[c] * weights[0];
                for (int i = 1; i < by->count[x]; i++) sum = joined(old[i * channels + c], weights[i], sum);
                to[x * channels + c] = sum;
            }
        }
    }
}

/* Square images [images][old][old][channels] at [images][new][new][channels], rows first. */
void resize_images(const SideWeights *by, const float *from, long images, int channels, float *to, int threads) {
    const int old_row = by->old * channels, new_row = by->new * channels;
#pragma omp parallel num_threads(threads)
    {
        const Share me = share_of(images);
        float *rows = malloc(sizeof(float) * (old_row + 1 + (long)by->old * new_row + 1)), *last = rows + (long)by->old * new_row + 1;
        for (long i = me.first; i < me.first + me.count; i++) {
            const float *image = from + i * by->old * old_row;
            for (int y = 0; y < by->old; y++) {
                const float *row = image + (long)y * old_row;
                if (i == images - 1 && y == by->old - 1) row = memcpy(last, row, sizeof(float) * old_row); /* none comes after it */
                if (channels == 3) resize_row(by, row, 3, rows + (long)y * new_row);
                else resize_row(by, row, channels, rows + (long)y * new_row);
            }
            for (int y = 0; y < by->new; y++) {
                const float *weights = by->weights + (long)y * by->most, *old = rows + (long)by->first[y] * new_row;
                float *out = to + (i * by->new + y) * (long)new_row;
                for (int x = 0; x < new_row; x++) out[x] = old[x] * weights[0];
                for (int k = 1; k < by->count[y]; k++)
                    for (int x = 0; x < new_row; x++) out[x] = joined(old[(long)k * new_row + x], weights[k], out[x]);
            }
        }
        free(rows);
    }
}
