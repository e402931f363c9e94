/* Work divided among workers by images. */
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

/* One of several workers, and its images. */
typedef struct {
    int part, parts;
    long first, count;
} Share;

/* Where a part's share of n things begins. */
INLINE long part_start(long n, int part, int parts) { return n * part / parts; }

static Share share_of(long images) {
    Share s = {.part = omp_get_thread_num(), .parts = omp_get_num_threads()};
    s.first = part_start(images, s.part, s.parts);
    s.count = part_start(images, s.part + 1, s.parts) - s.first;
    return s;
}

/* Until here what the others have written is not to be read. */
static void wait_for_all(void) {
#pragma omp barrier
}
