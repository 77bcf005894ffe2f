/* Put before the C library of a server or an agent: its calendar is ahead by the seconds that a file says at each moment. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t none;
static const volatile int64_t *ahead_s = &none;

/* The file is named after the host, or "server". */
__attribute__((constructor)) static void find(int count, char **words) {
    const char *directory = getenv("STERNA_TEST_CLOCKS"), *who = NULL;
    char path[4096];
    if (!directory || count < 2)
        return;
    if (strcmp(words[1], "server") == 0)
        who = "server";
    for (int n = 2; n + 1 < count && strcmp(words[1], "agent") == 0; n++)
        if (strcmp(words[n], "--name") == 0)
            who = words[n + 1];
    if (!who || snprintf(path, sizeof path, "%s/%s", directory, who) >= (int)sizeof path)
        return;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *shown = mmap(NULL, sizeof *ahead_s, PROT_READ, MAP_SHARED, file, 0);
    if (shown != MAP_FAILED)
        ahead_s = shown;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (failed == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += *ahead_s;
    return (int)failed;
}
