/* Shifts what a program reads as the time of day by the seconds that $CLOCK_OFFSET_FILE holds; a test preloads it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, time);
    const char *path = getenv("CLOCK_OFFSET_FILE");
    FILE *file = result == 0 && id == CLOCK_REALTIME && path ? fopen(path, "r") : NULL;
    if (file) {
        long offset;
        if (fscanf(file, "%ld", &offset) == 1)
            time->tv_sec += offset;
        fclose(file);
    }
    return result;
}
