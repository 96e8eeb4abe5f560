/* Copies large inputs into page-locked memory by several threads that know nothing of Python.
 *
 * Python threads that copy one array together wait for the interpreter's lock between any two steps, which takes
 * longer than to copy a megabyte. These threads share out the pieces of one copy by an atomic counter, and the
 * caller sends each piece to the device as soon as it and those before it are there.
 *
 *     cc -O3 -shared -fPIC -pthread -o libedgeinfer_copy.so copy_team.c
 *
 * Helpers look for the next copy for a while (`spin_ns`) before they sleep: to be woken up takes as long as to
 * copy half a megabyte.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum { MOST_PIECES = 64, VERSION = 1, AHEAD = 2048 /* bytes */ };

/* cuMemcpyHtoDAsync_v2 of the driver; 0 is success. */
typedef int (*send_fn)(uint64_t device, const void *host, size_t size, void *stream);

typedef struct {
    /* The number of the copy in the upper half, the pieces that nobody has taken in the lower one: a helper that
     * wakes up late takes nothing of a copy that it does not know. */
    _Atomic uint64_t state;
    _Atomic uint64_t done; /* a bit for each piece that is copied */
    char *target;
    const char *source;
    size_t size, piece;
    uint32_t pieces;
    int64_t spin_ns;
    int past_caches;
    int helpers, stop;
    _Atomic int asleep;
    pthread_mutex_t one_caller, sleep;
    pthread_cond_t wake;
    pthread_t threads[];
} team;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void stream_512(char *target, const char *source, size_t lines) {
    for (; lines; --lines, target += 64, source += 64) {
        _mm_prefetch(source + AHEAD, _MM_HINT_T0);
        _mm512_stream_si512((void *)target, _mm512_loadu_si512(source));
    }
}

static void stream_128(char *target, const char *source, size_t lines) {
    for (; lines; --lines, target += 64, source += 64) {
        _mm_prefetch(source + AHEAD, _MM_HINT_T0); /* the processor itself does not look beyond a page */
        __m128i a = _mm_loadu_si128((const __m128i *)source), b = _mm_loadu_si128((const __m128i *)source + 1);
        __m128i c = _mm_loadu_si128((const __m128i *)source + 2), d = _mm_loadu_si128((const __m128i *)source + 3);
        _mm_stream_si128((__m128i *)target, a), _mm_stream_si128((__m128i *)target + 1, b);
        _mm_stream_si128((__m128i *)target + 2, c), _mm_stream_si128((__m128i *)target + 3, d);
    }
}
#endif

/* What the device reads next need not push anything out of the caches, nor be looked for in them. */
static void copy_past_caches(char *target, const char *source, size_t size) {
#if defined(__x86_64__)
    size_t head = -(uintptr_t)target & 63;
    if (size < head + 64) {
        memcpy(target, source, size);
        return;
    }
    memcpy(target, source, head);
    target += head, source += head, size -= head;
    size_t lines = size / 64;
    (__builtin_cpu_supports("avx512f") ? stream_512 : stream_128)(target, source, lines);
    target += 64 * lines, source += 64 * lines, size %= 64;
    memcpy(target, source, size);
    _mm_sfence();
#else
    memcpy(target, source, size);
#endif
}

/* Take a piece of the copy of a number and copy it; 0 where none is left. */
static int work(team *t, uint32_t number) {
    uint64_t state = atomic_load_explicit(&t->state, memory_order_acquire);
    do {
        if ((uint32_t)(state >> 32) != number || (uint32_t)state == 0) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&t->state, &state, state - 1, memory_order_acq_rel,
                                                    memory_order_acquire));
    /* The caller waits for this piece, so that nothing of the copy changes now. */
    uint32_t index = t->pieces - (uint32_t)state;
    size_t start = index * t->piece;
    size_t size = t->size - start < t->piece ? t->size - start : t->piece;
    if (t->past_caches)
        copy_past_caches(t->target + start, t->source + start, size);
    else
        memcpy(t->target + start, t->source + start, size);
    atomic_fetch_or_explicit(&t->done, (uint64_t)1 << index, memory_order_release);
    return 1;
}

static void *serve(void *given) {
    team *t = given;
    uint32_t known = 0;
    for (;;) {
        int64_t end = now_ns() + t->spin_ns;
        uint32_t number;
        for (int look = 1;; ++look) {
            number = atomic_load_explicit(&t->state, memory_order_acquire) >> 32;
            if (number != known) break;
            RELAX();
            if (look % 64 == 0 && now_ns() > end) {
                pthread_mutex_lock(&t->sleep);
                atomic_fetch_add(&t->asleep, 1);
                while (!t->stop && (number = atomic_load(&t->state) >> 32) == known)
                    pthread_cond_wait(&t->wake, &t->sleep);
                atomic_fetch_sub(&t->asleep, 1);
                int stop = t->stop;
                pthread_mutex_unlock(&t->sleep);
                if (stop) return NULL;
                break;
            }
        }
        known = number;
        while (work(t, number)) {}
    }
}

int edgeinfer_copy_version(void) { return VERSION; }

void edgeinfer_copy_free(void *given) {
    team *t = given;
    pthread_mutex_lock(&t->sleep);
    t->stop = 1;
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->sleep);
    for (int i = 0; i < t->helpers; ++i) pthread_join(t->threads[i], NULL);
    pthread_mutex_destroy(&t->one_caller);
    pthread_mutex_destroy(&t->sleep);
    pthread_cond_destroy(&t->wake);
    free(t);
}

/* Start helpers; NULL where the system has no room for them. */
void *edgeinfer_copy_new(int helpers, int64_t spin_ns, int past_caches) {
    team *t = calloc(1, sizeof(team) + sizeof(pthread_t) * (size_t)helpers);
    if (!t) return NULL;
    t->spin_ns = spin_ns, t->past_caches = past_caches;
    pthread_mutex_init(&t->one_caller, NULL);
    pthread_mutex_init(&t->sleep, NULL);
    pthread_cond_init(&t->wake, NULL);
    for (; t->helpers < helpers; ++t->helpers) {
        if (pthread_create(&t->threads[t->helpers], NULL, serve, t)) {
            edgeinfer_copy_free(t);
            return NULL;
        }
    }
    return t;
}

/* Copy, and send each piece to the device in order. The source is read when this returns. Returns what `send`
 * returns where that is not 0, and then sends no more. A second caller at the same time copies without help. */
int edgeinfer_copy_run(void *given, char *target, const char *source, size_t size, size_t piece, send_fn send,
                       uint64_t device, void *stream) {
    team *t = given;
    if (size == 0) return 0;
    if (piece < (size + MOST_PIECES - 1) / MOST_PIECES) piece = (size + MOST_PIECES - 1) / MOST_PIECES;
    uint32_t pieces = (uint32_t)((size + piece - 1) / piece), sent = 0;
    int failed = 0;
    if (pieces == 1 || pthread_mutex_trylock(&t->one_caller)) {
        for (size_t start = 0; start < size && !failed; start += piece) {
            size_t part = size - start < piece ? size - start : piece;
            memcpy(target + start, source + start, part);
            failed = send(device + start, target + start, part, stream);
        }
        return failed;
    }
    t->target = target, t->source = source, t->size = size, t->piece = piece, t->pieces = pieces;
    atomic_store(&t->done, 0);
    uint32_t number = (uint32_t)(atomic_load(&t->state) >> 32) + 1;
    atomic_store(&t->state, (uint64_t)number << 32 | pieces);
    if (atomic_load(&t->asleep)) {
        pthread_mutex_lock(&t->sleep);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->sleep);
    }
    while (sent < pieces) {
        int own = work(t, number);
        uint64_t done = atomic_load_explicit(&t->done, memory_order_acquire);
        uint32_t ready = sent;
        while (ready < pieces && done >> ready & 1) ++ready;
        if (ready > sent) { /* what lies behind each other goes in one call */
            size_t start = sent * piece, end = ready * piece < size ? ready * piece : size;
            if (!failed) failed = send(device + start, target + start, end - start, stream);
            sent = ready;
        } else if (!own) {
            RELAX();
        }
    }
    pthread_mutex_unlock(&t->one_caller);
    return failed;
}
