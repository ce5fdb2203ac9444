/* step: a step on its way through the device, from the batch to the drawn tokens. Engine thread
 * only.
 *
 * There are two step objects, so that one can be built and enqueued while the device works on the
 * other. What the host writes for a step and reads of it (batch, parameters, results) is the step's
 * own; device memory they share, because the device does one step after the other. */
#ifndef TRIBUTARY_ENGINE_STEP_H
#define TRIBUTARY_ENGINE_STEP_H

#include "engine/batch.h"
#include "engine/forward.h"
#include "engine/sampler.h"
#include "node/base/clock.h"

struct err;

enum { STEP_BUCKETS_MAX = 13, STEP_DECODE_ROWS_MAX = 256 };

struct step {
    struct step_batch batch;
    struct sampler sampler;
    /* Of a decode step of that size, or NULL; [1]: with heavy adapters (ops.h). */
    struct recording *recordings[STEP_BUCKETS_MAX][2];
    uint64_t mark; /* behind it in the stream */
    struct monotonic_us enqueued;
};

struct stepper {
    const struct ops *ops;
    struct backend *be;
    struct forward *forward;
    struct lora_pool *lora;
    struct devptr device;          /* of both batches */
    int buckets[STEP_BUCKETS_MAX]; /* [n_buckets] ascending */
    int n_buckets;
    bool pads; /* decode steps are filled up to a bucket: there are recordings, or a test asks */
    bool recorded; /* at least one recording is there */
    int n_padded;  /* rows of the step enqueued last, all of which drew; 0: it was not padded */
    uint64_t n_replayed;
    struct step steps[2];
};

/* Bytes of device memory that stepper_create takes. */
size_t stepper_bytes(int max_rows, int max_seqs, int max_blocks);

/* pads: fill decode steps up even where nothing can be recorded. All pointers must outlive it. */
int stepper_create(struct stepper *t, const struct ops *ops, struct backend *be,
                   struct forward *forward, struct lora_pool *lora, int max_rows, int max_seqs,
                   int max_blocks, int32_t pad_block, bool pads, struct err *err);
void stepper_release(struct stepper *t); /* quiet on zeroed */

/* Records decode steps of every size, in both objects, if the backend can. Call it once, with
 * nothing enqueued; the first lora slot is taken to be empty. */
int stepper_record(struct stepper *t, struct err *err);

/* Is it a decode step: one row each, every one draws, by its parameters alone? Then it may be
 * replayed, and may follow a step whose draws aren't known yet. */
bool stepper_is_decode(const struct stepper *t, const struct batch_seq *seqs, int n);

/* Enqueues the step whose sequences the caller wrote into s->batch.seqs (step_batch_build).
 * follows: it is a decode step over the very sequences of the step enqueued last, each of which
 * drew a token there, with holes for some: row i's token is that step's draw i, taken from the
 * device. */
void stepper_enqueue(struct stepper *t, struct step *s, int n_seqs, bool follows);

/* Until the device is done with it: its results are there. */
int stepper_wait(struct stepper *t, const struct step *s, struct err *err);

void stepper_set_hook(struct stepper *t, logits_hook *hook, void *context);

#endif
