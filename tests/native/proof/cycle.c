/* Load the library, open, run, close, unload: CYCLES times, then leave the process. Memory, resident or allocated, must
   not grow after the first WARM_UP, nothing may be printed, and no thread, descriptor or child be left. Where there are no
   more of them, nothing is compared.
       cycle libdecipher_rt.so BUNDLE CYCLES WARM_UP [CACHE_FOLDER] */

#include <decipher_rt.h>
#include <dirent.h>
#include <dlfcn.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEPTH = 16, SIDE = 48 };
static const double allowed_growth_mb = 8, allowed_allocations_mb = 1;

static double resident_mb(void) {
    long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld %ld", &total, &resident) != 2) return -1;
    fclose(file);
    return (double)resident * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

/* Without what the C library keeps for later. */
static double allocated_mb(void) {
    struct mallinfo2 now = mallinfo2();
    return (double)(now.uordblks + now.hblkhd) / 1e6;
}

static int entries(const char *folder) {
    int count = 0;
    DIR *open = opendir(folder);
    while (open != NULL && readdir(open) != NULL) ++count;
    if (open != NULL) closedir(open);
    return count;
}

static int cycle(const char *path, const char *bundle, const char *cache) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return printf("%s\n", dlerror()), 1;
    /* ISO C has no cast from an object to a function pointer. */
    void (*defaults)(drt_session_params *, size_t), (*blank)(drt_volume *, size_t), (*close)(drt_session *);
    drt_status (*open)(const char *, const drt_session_params *, drt_session **);
    drt_status (*run)(drt_session *, const drt_volume *);
    const char *(*last_error)(void);
    *(void **)&defaults = dlsym(library, "drt_session_default_params");
    *(void **)&blank = dlsym(library, "drt_default_volume");
    *(void **)&open = dlsym(library, "drt_session_open");
    *(void **)&run = dlsym(library, "drt_session_run");
    *(void **)&close = dlsym(library, "drt_session_close");
    *(void **)&last_error = dlsym(library, "drt_last_error");

    static short voxels[DEPTH * SIDE * SIDE];
    for (int i = 0; i < DEPTH * SIDE * SIDE; ++i) voxels[i] = (short)(i * 37 % 1000);
    drt_session_params params;
    drt_volume volume;
    drt_session *session = NULL;
    defaults(&params, sizeof params);
    params.threads = 2;
    params.cache_folder = cache;
    blank(&volume, sizeof volume);
    volume.voxels = voxels;
    volume.shape[0] = DEPTH, volume.shape[1] = volume.shape[2] = SIDE;
    const double affine[16] = {0, 0, 4, 0, 0, 4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1};
    memcpy(volume.affine_lps_mm, affine, sizeof affine);
    int failed = open(bundle, &params, &session) != DRT_OK || run(session, &volume) != DRT_OK;
    if (failed) printf("%s\n", last_error());
    close(session);
    return dlclose(library) != 0 || failed;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    const int cycles = atoi(argv[3]), warm_up = atoi(argv[4]);
    /* Every cycle has new threads. In an arena each, what is free and resident varies by 10 MB from cycle to cycle. */
    mallopt(M_ARENA_MAX, 1);
    double warm = 0, allocated = 0;
    int descriptors = 0, threads = 0;
    for (int i = 0; i < cycles; ++i) {
        if (cycle(argv[1], argv[2], argc > 5 ? argv[5] : NULL) != 0) return 1;
        if (i + 1 == warm_up) {
            warm = resident_mb();
            allocated = allocated_mb();
            descriptors = entries("/proc/self/fd");
            threads = entries("/proc/self/task");
        }
    }
    if (cycles <= warm_up) return 0;
    allocated = allocated_mb() - allocated;
    printf("%d cycles: %.1f MB resident after %d, %.1f MB at the end, %.2f MB more allocated; %d descriptors, %d threads "
           "more\n",
           cycles, warm, warm_up, resident_mb(), allocated, entries("/proc/self/fd") - descriptors,
           entries("/proc/self/task") - threads);
    if (warm <= 0 || descriptors <= 0 || threads <= 0) return printf("/proc tells nothing of this process\n"), 1;
    return resident_mb() - warm > allowed_growth_mb || allocated > allowed_allocations_mb ||
           entries("/proc/self/fd") != descriptors || entries("/proc/self/task") != threads;
}
