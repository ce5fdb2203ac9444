/* generation: two checksummed slots in a small file, written in turn.
 *
 *     offset   0   slot 0        512   slot 1        (1,024 bytes in all)
 *     slot:    magic 8 "TRIBgen1" | ledger id 16 | counter 8 | inode 8 | sha256 of these 40 bytes
 * 32 integers little-endian; the rest of a slot is zero
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
 * with the device's number, which changes over reboots. */
#include "attribution/generation.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A new database's first commit makes its tables' first rows; no receipt is in it. */
enum { FIRST_COUNTER = 1 };

enum { SLOT_BYTES = 512, SIGNED_BYTES = 40, N_SLOTS = 2 };
static const char magic[8] = {'T', 'R', 'I', 'B', 'g', 'e', 'n', '1'};

struct generation {
    int fd;
    char *path;
    uint8_t ledger_id[16];
    uint64_t inode;
    int next_slot;
    bool both;        /* the next write replaces both slots: what they hold is of another past */
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

static bool slot_ok(const uint8_t *slot)
{
    struct sha256_digest check = sha256(slot, SIGNED_BYTES);
    return memcmp(slot, magic, 8) == 0 && memcmp(slot + SIGNED_BYTES, check.bytes, 32) == 0;
}

static int write_slot(struct generation *g, uint64_t counter, struct err *err)
{
    uint8_t slot[SLOT_BYTES] = {0};
    memcpy(slot, magic, 8);
    memcpy(slot + 8, g->ledger_id, 16);
    put_u64(slot + 24, counter);
    put_u64(slot + 32, g->inode);
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

int generation_advance(struct generation *g, uint64_t counter, struct err *err)
{
    if (g->both && write_slot(g, counter, err) != 0)
        return -1;
    if (write_slot(g, counter, err) != 0)
        return -1;
    g->both = false;
    g->counter = counter;
    return 0;
}

uint64_t generation_counter(const struct generation *g)
{
    return g->counter;
}

struct generation *generation_open(const char *path, const uint8_t ledger_id[16], uint64_t counter,
                                   enum generation_verdict *verdict, const char **why,
                                   struct err *err)
{
    struct generation *g = xcalloc(1, sizeof(*g));
    uint8_t slots[N_SLOTS * SLOT_BYTES] = {0};
    struct stat st;
    g->path = xstrdup(path);
    memcpy(g->ledger_id, ledger_id, 16);
    *why = "";
    g->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (g->fd < 0 || fstat(g->fd, &st) != 0) {
        err_set_errno(err, errno, "%s", path);
        generation_close(g);
        return NULL;
    }
    g->inode = (uint64_t)st.st_ino;
    if (st.st_size < (off_t)sizeof(slots)) {
        /* Full size from the start, so that advancing never changes metadata. */
        *verdict = counter <= FIRST_COUNTER ? GENERATION_NEW : GENERATION_RESTORED;
        if (*verdict == GENERATION_RESTORED)
            *why = "ledger.generation is missing beside it";
        if (ftruncate(g->fd, 0) != 0 ||
            pwrite(g->fd, slots, sizeof(slots), 0) != (ssize_t)sizeof(slots) || fsync(g->fd) != 0) {
            err_set_errno(err, errno, "%s: creating", path);
            generation_close(g);
            return NULL;
        }
        g->both = true;
        return g;
    }
    if (pread(g->fd, slots, sizeof(slots), 0) != (ssize_t)sizeof(slots)) {
        err_set_errno(err, errno, "%s: reading", path);
        generation_close(g);
        return NULL;
    }
    const uint8_t *newest = NULL;
    for (int i = 0; i < N_SLOTS; i++) {
        const uint8_t *slot = slots + i * SLOT_BYTES;
        if (slot_ok(slot) && (!newest || get_u64(slot + 24) > get_u64(newest + 24))) {
            newest = slot;
            g->next_slot = 1 - i;
        }
    }
    g->counter = newest ? get_u64(newest + 24) : 0;
    *verdict = GENERATION_RESTORED;
    if (!newest && counter <= FIRST_COUNTER)
        *verdict = GENERATION_NEW; /* the power went during the very first start */
    else if (!newest)
        *why = "ledger.generation is damaged";
    else if (memcmp(newest + 8, ledger_id, 16) != 0)
        *why = "ledger.generation belongs to another ledger";
    else if (counter < get_u64(newest + 24))
        *why = "the database is older than ledger.generation";
    else if (get_u64(newest + 32) != g->inode)
        *why = "the data directory was copied";
    else
        *verdict = GENERATION_SAME;
    g->both = *verdict != GENERATION_SAME;
    return g;
}

void generation_close(struct generation *g)
{
    if (!g)
        return;
    if (g->fd >= 0)
        close(g->fd);
    free(g->path);
    free(g);
}
