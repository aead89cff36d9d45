/* A client that checks.  `writer DIR` for ever: create, write 4 KiB, fsync, rename over one of SLOTS names, fsync the directory, read back and
   compare, wait PAUSE_MS (20).  Once a second it says `acked SEQUENCE ops N errors N longest_ms N`, and `slow MS at EPOCH STEP` of each step over SLOW_MS at once.
   SIGTERM: the last word, exit 0 without errors.  `writer --check DIR`: every name holds a whole record; says the highest sequence. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 4096, SLOTS = 64, SLOW_MS = 500, WORDS = SIZE / 8 };

static volatile sig_atomic_t ending;
static uint64_t acked, operations, errors;
static double longest_ms, began;
static const char *folder;

static void end(int signal) { ending = signal; }

static double now_ms(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void fill(uint64_t *record, uint64_t sequence) {
    uint64_t state = sequence * 0x9e3779b97f4a7c15u + 1;
    record[0] = sequence;
    for (int i = 1; i < WORDS; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        record[i] = state;
    }
}

static int say(const char *step, const char *name) {
    errors++;
    printf("error %s %s: %s\n", step, name, errno ? strerror(errno) : "other bytes than written");
    fflush(stdout);
    return -1;
}

static void took(const char *step) {
    double ms = now_ms(CLOCK_MONOTONIC) - began;
    if (ms > longest_ms) longest_ms = ms;
    if (ms > SLOW_MS) {
        printf("slow %.0f at %.3f %s\n", ms, (now_ms(CLOCK_REALTIME) - ms) / 1e3, step);
        fflush(stdout);
    }
    began = now_ms(CLOCK_MONOTONIC);
}

/* The sequence in a whole record, or -1. */
static int64_t whole(const char *path) {
    uint64_t found[WORDS], wanted[WORDS];
    int file = open(path, O_RDONLY);
    if (file < 0) return -1;
    ssize_t count = read(file, found, SIZE);
    int kept = errno;
    close(file);
    errno = count < 0 ? kept : 0;
    if (count != SIZE) return -1;
    fill(wanted, found[0]);
    return memcmp(found, wanted, SIZE) ? -1 : (int64_t)found[0];
}

static int round_of(uint64_t sequence) {
    char temporary[4096], name[4096];
    uint64_t record[WORDS];
    snprintf(temporary, sizeof temporary, "%s/.new", folder);
    snprintf(name, sizeof name, "%s/record-%02d", folder, (int)(sequence % SLOTS));
    fill(record, sequence);
    errno = 0;
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0) return say("create", temporary);
    took("create");
    if (write(file, record, SIZE) != SIZE) { close(file); return say("write", temporary); }
    took("write");
    if (fsync(file)) { close(file); return say("fsync", temporary); }
    took("fsync");
    if (close(file)) return say("close", temporary);
    if (rename(temporary, name)) return say("rename", name);
    took("rename");
    int directory = open(folder, O_RDONLY | O_DIRECTORY);
    if (directory < 0 || fsync(directory)) return say("fsync of the directory", folder);
    close(directory);
    took("fsync of the directory");
    if (whole(name) != (int64_t)sequence) return say("read back", name);
    took("read back");
    acked = sequence;
    operations++;
    return 0;
}

static int check(void) {
    int64_t highest = -1;
    int bad = 0, there = 0;
    for (int slot = 0; slot < SLOTS; slot++) {
        char name[4096];
        snprintf(name, sizeof name, "%s/record-%02d", folder, slot);
        if (access(name, F_OK)) continue;
        there++;
        int64_t sequence = whole(name);
        if (sequence < 0) bad++, say("check", name);
        if (sequence > highest) highest = sequence;
    }
    printf("records %d bad %d highest %lld\n", there, bad, (long long)highest);
    return bad ? 1 : 0;
}

static void report(void) {
    printf("acked %llu ops %llu errors %llu longest_ms %.0f\n", (unsigned long long)acked, (unsigned long long)operations,
           (unsigned long long)errors, longest_ms);
    fflush(stdout);
}

int main(int count, char **words) {
    int checking = count == 3 && !strcmp(words[1], "--check");
    if (count != 2 && !checking) return 2;
    folder = words[count - 1];
    if (checking) return check();
    signal(SIGTERM, end);
    if (mkdir(folder, 0755) && errno != EEXIST) return say("mkdir", folder), 1;
    double said = now_ms(CLOCK_MONOTONIC);
    useconds_t pause_us = 1000 * (getenv("PAUSE_MS") ? atoi(getenv("PAUSE_MS")) : 20); /* all share two cores with what they watch */
    for (uint64_t sequence = 1; !ending; sequence++) {
        began = now_ms(CLOCK_MONOTONIC);
        if (round_of(sequence)) usleep(100000);
        usleep(pause_us);
        if (now_ms(CLOCK_MONOTONIC) - said > 1000) report(), said = now_ms(CLOCK_MONOTONIC);
    }
    report();
    return errors ? 1 : 0;
}
