/* answer: one streamed completion as it arrives, counted and at its end compared with its receipt.
 *
 * Server-sent events of POST /v1/completions with "stream" and "return_token_ids": events with
 * choices[0].token_ids, one with finish_reason and the field `tributary` (the signed receipt), then
 * [DONE]. What must be true of a whole answer:
 *   - as many tokens as were asked for, and no event that says "error"
 *   - exactly one receipt, and [DONE] behind it
 *   - the receipt's promptTokens and completionTokens are the request's and the answer's
 *   - its requestHash is sha256 of the body that was sent, its responseHash sha256 of the token ids
 *     as little-endian uint32 (DESIGN: section 7)
 * The signature isn't checked here: `tributary verify` does that. */
#ifndef TRIBUTARY_TESTS_BENCH_ANSWER_H
#define TRIBUTARY_TESTS_BENCH_ANSWER_H

#include "node/base/buf.h"
#include "node/base/sha256.h"

#include <stdbool.h>

struct err;

struct answer {
    struct buf event; /* the one that is arriving */
    int n_tokens, n_receipts;
    bool is_done;      /* [DONE] came */
    bool failed;       /* `wrong` says why; nothing more is read */
    struct sha256 ids; /* of the tokens so far */
    int64_t receipt_prompt, receipt_completion;
    char request_hash[80], response_hash[80]; /* of the receipt: "0x" and 64 digits */
    char wrong[256];
};

void answer_init(struct answer *a); /* of zeroed memory, or of one that was used */
void answer_release(struct answer *a);

/* The next bytes of the body. Returns the tokens that they completed. */
int answer_feed(struct answer *a, const void *bytes, size_t n);

/* At the end of the body. -1 and ERR_CORRUPT with what is wrong. */
int answer_check(const struct answer *a, int n_prompt, int n_generate, const void *body,
                 size_t n_body, struct err *err);

#endif
