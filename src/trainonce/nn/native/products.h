/* Matrix products of activations and weights: long in one direction (the pixels of all images), short in the others.
 *
 * The right factor is packed, DEPTH of its rows at a time, into columns of LANES numbers that stay in the cache; a tile of the
 * result stays in registers while the left factor's numbers are read once for each VECS columns. On such shapes this is
 * faster than libraries on processors that those are not made for, and nearly as fast on the others (docs/speed.md).
 */
#ifdef __AVX512F__
#define TILE_ROWS 8 /* with TILE_VECS they fill the registers: 24 sums of 32, or 12 of 16 */
#else
#define TILE_ROWS 4
#endif
#define TILE_VECS 3
#define DEPTH 256
#define UNROLLED _Pragma("GCC unroll 8") /* else GCC leaves some tiles' sums in memory, at half the speed */
#define UNROLLED16 _Pragma("GCC unroll 16")

enum { AS_IS = 0, TRANSPOSED = 1 };

/* The first `count` columns of up to LANES rows that lie `step` apart, as vectors, or as many of them as can be had
 * quickly: gives how many. Beyond the rows they are zero. */
static int columns(const float *rows, int step, int lanes, int count, vec *to) {
    int p = 0;
#ifdef __AVX512F__
    for (; p + LANES <= count; p += LANES) { /* twos of numbers, then fours, eights and sixteens change places */
        __m512 a[LANES], b[LANES];
        UNROLLED16 for (int i = 0; i < LANES; i++)
            a[i] = i < lanes ? _mm512_loadu_ps(rows + (long)i * step + p) : _mm512_setzero_ps();
        UNROLLED16 for (int i = 0; i < LANES; i += 2) {
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
        UNROLLED16 for (int i = 0; i < LANES; i += 4)
            UNROLLED for (int j = 0; j < 2; j++) {
                const __m512d one = _mm512_castps_pd(b[i + j]), other = _mm512_castps_pd(b[i + j + 2]);
                a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(one, other));
                a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(one, other));
            }
        UNROLLED for (int i = 0; i < LANES; i += 8)
            UNROLLED for (int j = 0; j < 4; j++) {
                b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
                b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xdd);
            }
        UNROLLED for (int j = 0; j < 8; j++) {
            to[p + j] = (vec)_mm512_shuffle_f32x4(b[j], b[j + 8], 0x88);
            to[p + j + 8] = (vec)_mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd);
        }
    }
#endif
    return p;
}

/* B [k, n], stored so or the other way round with rows that lie ldb apart, as [chunks of n][k]. */
static void pack(int way, const float *b, int ldb, int n, int k, vec *packed) {
    for (int c = 0; c < n; c += LANES, packed += k) {
        const int lanes = lanes_at(c, n);
        if (way == AS_IS) {
            for (int p = 0; p < k; p++) packed[p] = load(b + (long)p * ldb + c, lanes);
        } else {
            const int done = columns(b + (long)c * ldb, ldb, lanes, k, packed);
            memset(packed + done, 0, sizeof(vec) * (k - done));
            for (int lane = 0; lane < lanes; lane++)
                for (int p = done; p < k; p++) packed[p][lane] = b[(long)(c + lane) * ldb + p];
        }
    }
}

/* A tile of C, ROWS by n of VECS chunks: where `add`, on top of what is there. A's numbers lie a_row and a_step apart. */
INLINE void tile(const int ROWS, const int VECS, const float *a, long a_row, long a_step, const vec *packed, int k, int add,
                 float *c, int ldc, int n) {
    vec sum[TILE_ROWS][TILE_VECS];
    UNROLLED for (int r = 0; r < ROWS; r++)
        UNROLLED for (int v = 0; v < VECS; v++) sum[r][v] = (vec){0};
    for (int p = 0; p < k; p++)
        UNROLLED for (int r = 0; r < ROWS; r++)
            UNROLLED for (int v = 0; v < VECS; v++) sum[r][v] += packed[(long)v * k + p] * a[r * a_row + p * a_step];
    UNROLLED for (int r = 0; r < ROWS; r++)
        UNROLLED for (int v = 0; v < VECS; v++) {
            const int lanes = v + 1 < VECS ? LANES : lanes_at(v * LANES, n);
            float *to = c + (long)r * ldc + v * LANES;
            store(to, add ? sum[r][v] + load(to, lanes) : sum[r][v], lanes);
        }
}

INLINE void tiles(const int ROWS, const float *a, long a_row, long a_step, const vec *packed, int k, int add, float *c, int ldc,
                  int n) {
    for (; n > 2 * LANES; n -= 3 * LANES, c += 3 * LANES, packed += 3 * k)
        tile(ROWS, 3, a, a_row, a_step, packed, k, add, c, ldc, min(n, 3 * LANES));
    if (n > LANES) tile(ROWS, 2, a, a_row, a_step, packed, k, add, c, ldc, n);
    else if (n > 0) tile(ROWS, 1, a, a_row, a_step, packed, k, add, c, ldc, n);
}

/* C [m, n] = A [m, k] B [k, n], added to what is there where `add`, with rows that lie lda, ldb and ldc apart; a transposed
 * factor is stored the other way round. */
static void product(int a_way, const float *a, int lda, int b_way, const float *b, int ldb, int add, float *c, int ldc, int m,
                    int n, int k) {
    const long a_row = a_way ? 1 : lda, a_step = a_way ? lda : 1;
    vec *packed = new_vecs((long)chunks_of(n) * min(k, DEPTH));
    for (int p = 0; p < k; p += DEPTH, a += DEPTH * a_step, add = 1) {
        const int depth = min(k - p, DEPTH);
        pack(b_way, b + (b_way ? p : (long)p * ldb), ldb, n, depth, packed);
        int i = 0;
        for (; i + TILE_ROWS <= m; i += TILE_ROWS)
            tiles(TILE_ROWS, a + i * a_row, a_row, a_step, packed, depth, add, c + (long)i * ldc, ldc, n);
        for (; i + 2 <= m; i += 2) tiles(2, a + i * a_row, a_row, a_step, packed, depth, add, c + (long)i * ldc, ldc, n);
        if (i < m) tiles(1, a + i * a_row, a_row, a_step, packed, depth, add, c + (long)i * ldc, ldc, n);
    }
    free(packed);
}
