/* generation: two checksummed slots in a small file, written in turn.
 *
 *     offset   0   slot 0        512   slot 1        (1,024 bytes in all)
 *     slot:    magic 8 "TRIBgen2" | ledger id 16 | counter 8 | inode 8 | birth 8 | sha256 of these
 *              48 bytes 32; integers little-endian; the rest of a slot is zero
 *     before:  magic "TRIBgen1", no birth, sha256 of the 40 bytes; still read
 *
 * The ledger commits (database fsync), then advances this file (fdatasync), then lets receipts go.
 * So whatever any client holds was signed at a counter that is in this file:
 *
 *     database counter >= file counter   nothing that left is missing: a normal start, or a crash
 *                                        between the two fsyncs (nobody saw those receipts)
 *     database counter <  file counter   receipts left that the database doesn't know: restored
 *
 * Writing the slots in turn means that a torn write leaves the other slot, whose counter is the
 * one before; that is only ever too low by receipts that had not left. The file never grows after
 * creation, so fdatasync writes one sector and no metadata.
 *
 * The inode number tells a copied directory (another inode) from the original; it is not compared
 * with the device's number, which changes over reboots. A file system gives the number of a deleted
 * file to the next one, so a directory that was deleted and put back from a copy may have it again:
 * the inode's time of birth, which no program can set, tells those apart (nanoseconds since 1970; 0
 * where the file system keeps none, and then it is not compared).
 *
 * Each start makes the file anew, beside the old one and renamed over it, and so does each orderly
 * end. So a copy tells of a file that is gone, even when it is written back into the files that are
 * there (cp), inodes and all; but not one that was made since the start of a node that crashed. */
#include "attribution/generation.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"
#include "node/base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLOT_BYTES = 512, SIGNED_BYTES = 48, SIGNED_BYTES_V1 = 40, N_SLOTS = 2 };
static const char magic[8] = {'T', 'R', 'I', 'B', 'g', 'e', 'n', '2'};
static const char magic_v1[8] = {'T', 'R', 'I', 'B', 'g', 'e', 'n', '1'};

struct generation {
    int fd;
    char *path;
    char *fresh; /* path.new, which the next write renames to path; NULL: done */
    uint8_t ledger_id[16];
    uint64_t inode, birth_ns;
    int next_slot;
    uint64_t counter; /* the highest in the file */
};

static void put_u64(uint8_t *out, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_u64(const uint8_t *bytes)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | bytes[i];
    return v;
}

static bool is_v1(const uint8_t *slot)
{
    return memcmp(slot, magic_v1, 8) == 0;
}

static bool slot_ok(const uint8_t *slot)
{
    size_t n = is_v1(slot) ? SIGNED_BYTES_V1 : SIGNED_BYTES;
    struct sha256_digest check = sha256(slot, n);
    return (is_v1(slot) || memcmp(slot, magic, 8) == 0) && memcmp(slot + n, check.bytes, 32) == 0;
}

/* Whether the slot was written to this very file. */
static bool slot_is_of(const uint8_t *slot, uint64_t inode, uint64_t birth_ns)
{
    uint64_t written_ns = is_v1(slot) ? 0 : get_u64(slot + 40);
    return get_u64(slot + 32) == inode &&
           (written_ns == birth_ns || written_ns == 0 || birth_ns == 0);
}

static uint64_t birth_ns_of(int fd)
{
    struct statx sx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &sx) != 0 || !(sx.stx_mask & STATX_BTIME))
        return 0;
    return (uint64_t)sx.stx_btime.tv_sec * 1000000000 + sx.stx_btime.tv_nsec;
}

static int write_slot(struct generation *g, uint64_t counter, struct err *err)
{
    uint8_t slot[SLOT_BYTES] = {0};
    memcpy(slot, magic, 8);
    memcpy(slot + 8, g->ledger_id, 16);
    put_u64(slot + 24, counter);
    put_u64(slot + 32, g->inode);
    put_u64(slot + 40, g->birth_ns);
    struct sha256_digest check = sha256(slot, SIGNED_BYTES);
    memcpy(slot + SIGNED_BYTES, check.bytes, 32);
    ssize_t n = pwrite(g->fd, slot, sizeof(slot), (off_t)g->next_slot * SLOT_BYTES);
    if (n != (ssize_t)sizeof(slot))
        return err_set_errno(err, n < 0 ? errno : ENOSPC, "the generation file: writing");
    if (fdatasync(g->fd) != 0)
        return err_set_errno(err, errno, "the generation file: fdatasync");
    g->next_slot = 1 - g->next_slot;
    return 0;
}

/* The fresh file becomes the file, whatever the power does. */
static int put_in_place(struct generation *g, struct err *err)
{
    if (rename(g->fresh, g->path) != 0)
        return err_set_errno(err, errno, "%s: renaming %s to it", g->path, g->fresh);
    if (fsync_parent(g->path) != 0)
        return err_set_errno(err, errno, "fsync of the directory of %s", g->path);
    free(g->fresh);
    g->fresh = NULL;
    return 0;
}

int generation_advance(struct generation *g, uint64_t counter, struct err *err)
{
    if (g->fresh && write_slot(g, counter, err) != 0) /* both slots: neither is of another past */
        return -1;
    if (write_slot(g, counter, err) != 0 || (g->fresh && put_in_place(g, err) != 0))
        return -1;
    g->counter = counter;
    return 0;
}

uint64_t generation_counter(const struct generation *g)
{
    return g->counter;
}

/* What the file at path, of which fd is open (or -1: there is none), says of the database. */
static enum generation_verdict judge(struct generation *g, int fd, const struct stat *st,
                                     const uint8_t *slots, uint64_t counter, const char **why)
{
    bool is_new = counter == 0; /* at 1 it may have been saved after its first start */
    if (fd < 0 || st->st_size < N_SLOTS * SLOT_BYTES) {
        *why = is_new ? "" : "ledger.generation is missing beside it";
        return is_new ? GENERATION_NEW : GENERATION_RESTORED;
    }
    const uint8_t *newest = NULL;
    for (int i = 0; i < N_SLOTS; i++) {
        const uint8_t *slot = slots + i * SLOT_BYTES;
        if (slot_ok(slot) && (!newest || get_u64(slot + 24) > get_u64(newest + 24)))
            newest = slot;
    }
    g->counter = newest ? get_u64(newest + 24) : 0;
    if (is_new && g->counter == 0)
        return GENERATION_NEW; /* the power went before the very first commit */
    if (!newest)
        *why = "ledger.generation is damaged";
    else if (memcmp(newest + 8, g->ledger_id, 16) != 0)
        *why = "ledger.generation belongs to another ledger";
    else if (counter < g->counter)
        *why = "the database is older than ledger.generation";
    else if (!slot_is_of(newest, (uint64_t)st->st_ino, birth_ns_of(fd)))
        *why = "the data directory was copied";
    else
        return GENERATION_SAME;
    return GENERATION_RESTORED;
}

static int make_fresh(struct generation *g, struct err *err)
{
    static const uint8_t slots[N_SLOTS * SLOT_BYTES];
    struct stat st;
    g->fresh = xasprintf("%s.new", g->path);
    unlink(g->fresh); /* of a start that didn't come this far */
    g->fd = open(g->fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    /* Full size from the start, so that advancing never changes metadata. */
    if (g->fd < 0 || fstat(g->fd, &st) != 0 ||
        pwrite(g->fd, slots, sizeof(slots), 0) != (ssize_t)sizeof(slots) || fsync(g->fd) != 0)
        return err_set_errno(err, errno, "%s: creating", g->fresh);
    g->inode = (uint64_t)st.st_ino;
    g->birth_ns = birth_ns_of(g->fd);
    return 0;
}

struct generation *generation_open(const char *path, const uint8_t ledger_id[16], uint64_t counter,
                                   enum generation_verdict *verdict, const char **why,
                                   struct err *err)
{
    struct generation *g = xcalloc(1, sizeof(*g));
    uint8_t slots[N_SLOTS * SLOT_BYTES] = {0};
    struct stat st = {0};
    g->fd = -1;
    g->path = xstrdup(path);
    memcpy(g->ledger_id, ledger_id, 16);
    *why = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
    if ((fd < 0 && errno != ENOENT) || (fd >= 0 && fstat(fd, &st) != 0))
        rc = err_set_errno(err, errno, "%s", path);
    else if (fd >= 0 && pread(fd, slots, sizeof(slots), 0) < 0)
        rc = err_set_errno(err, errno, "%s: reading", path);
    if (rc == 0)
        *verdict = judge(g, fd, &st, slots, counter, why);
    if (rc == 0)
        rc = make_fresh(g, err); /* while the old one is there: it gets another inode */
    if (fd >= 0)
        close(fd);
    if (rc != 0) {
        generation_close(g);
        return NULL;
    }
    return g;
}

void generation_close(struct generation *g)
{
    struct err err = {0};
    if (!g)
        return;
    int old = g->fd;
    if (old >= 0 && g->fresh == NULL) { /* in place, and perhaps copied since */
        if (make_fresh(g, &err) != 0 || generation_advance(g, g->counter, &err) != 0)
            log_warn("ledger", "a copy of the running ledger can't be told: %s", err.message);
        close(old);
    }
    if (g->fd >= 0)
        close(g->fd);
    free(g->path);
    free(g->fresh);
    free(g);
}
