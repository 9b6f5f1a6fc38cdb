// Large blocks of memory that stay with the process when they are freed, for LD_PRELOAD under glibc.
//
// XLA takes a step's temporaries in one block, by posix_memalign, and frees it after the step. glibc maps it anew each
// time, so that the kernel zeroes hundreds of megabytes a step. Told to keep it in its heap, glibc does not find it
// again: an aligned block needs more room while it is looked for than it keeps, some small block soon lies in the
// difference, and the heap grows by another block instead.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void *__libc_memalign(size_t alignment, size_t size);
extern void *__libc_realloc(void *start, size_t size);
extern void __libc_free(void *start);

#define SMALLEST ((size_t)4 << 20)
#define PAGE ((size_t)2 << 20)    // a huge one
#define SPAN ((size_t)1 << 40)    // addresses, not memory
#define MOST_BLOCKS 1024

typedef struct {
  char *start;
  size_t size;
  bool used;
} Block;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Block blocks[MOST_BLOCKS];
static int count;
static char *first, *next;  // the span's first address, and that of the next new block; NULL where it cannot be had

static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }

__attribute__((constructor)) static void reserve(void) {
  void *span = mmap(NULL, SPAN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (span == MAP_FAILED) return;
  next = (char *)(((uintptr_t)span + PAGE - 1) & ~(PAGE - 1));
  first = span;
  pthread_atfork(lock, unlock, unlock);
}

static bool is_block(void *start) { return first && (char *)start >= first && (char *)start < first + SPAN; }

static Block *find(void *start) {
  for (int i = 0; i < count; i++)
    if (blocks[i].start == start) return &blocks[i];
  abort();  // the program frees what it was never given
}

static void give_back(void) {
  for (int i = 0; i < count; i++)
    if (!blocks[i].used) madvise(blocks[i].start, blocks[i].size, MADV_DONTNEED);
}

// The free block of the best size, but not one of which most would lie idle; NULL where there is none.
static Block *kept(size_t size) {
  Block *best = NULL;
  for (int i = 0; i < count; i++) {
    Block *block = &blocks[i];
    if (block->used || block->size < size || block->size > 2 * size) continue;
    if (!best || block->size < best->size) best = block;
  }
  return best;
}

static Block *map(size_t size) {
  if (count == MOST_BLOCKS || size > (size_t)(first + SPAN - next)) return NULL;
  if (mprotect(next, size, PROT_READ | PROT_WRITE)) return NULL;
  madvise(next, size, MADV_HUGEPAGE);
  blocks[count] = (Block){.start = next, .size = size};
  next += size;
  return &blocks[count++];
}

// Where no kept block serves, the program does something new: the memory of the kept ones returns to the system.
static void *take(size_t size) {
  size = (size + PAGE - 1) & ~(PAGE - 1);
  lock();
  Block *block = kept(size);
  if (!block) {
    give_back();
    block = map(size);
  }
  if (block) block->used = true;
  unlock();
  return block ? block->start : NULL;
}

// --- in the place of glibc's own

int posix_memalign(void **start, size_t alignment, size_t size) {
  if (alignment < sizeof(void *) || alignment & (alignment - 1)) return EINVAL;
  void *found = first && size >= SMALLEST && alignment <= PAGE ? take(size) : NULL;
  if (!found) found = __libc_memalign(alignment, size);
  if (!found) return ENOMEM;
  *start = found;
  return 0;
}

void free(void *start) {
  if (!is_block(start)) {
    __libc_free(start);
    return;
  }
  lock();
  find(start)->used = false;
  unlock();
}

void *realloc(void *start, size_t size) {
  if (!is_block(start)) return __libc_realloc(start, size);
  lock();
  size_t before = find(start)->size;
  unlock();
  void *other = size ? malloc(size) : NULL;
  if (size && !other) return NULL;
  if (other) memcpy(other, start, before < size ? before : size);
  free(start);
  return other;
}

size_t malloc_usable_size(void *start) {
  if (!is_block(start)) return ((size_t (*)(void *))dlsym(RTLD_NEXT, "malloc_usable_size"))(start);
  lock();
  size_t size = find(start)->size;
  unlock();
  return size;
}

// Returns to the system what glibc and this file keep.
int malloc_trim(size_t pad) {
  lock();
  give_back();
  unlock();
  return ((int (*)(size_t))dlsym(RTLD_NEXT, "malloc_trim"))(pad);
}
