/* evm: what types.h lacks of an EVM chain's vocabulary.
 *
 * One-field structs, so that a block's hash, a topic and a storage key can't take each other's
 * place. Plain values, passed by value. */
#ifndef TRIBUTARY_CHAIN_EVM_H
#define TRIBUTARY_CHAIN_EVM_H

#include "chain/types.h"

#include <stdint.h>

struct bytes32 { /* a word without a type of its own: a storage key, a topic, a salt */
    uint8_t bytes[32];
};

struct block_hash {
    uint8_t bytes[32];
};

enum { BYTES32_TEXT_BYTES = 67 }; /* 0x, 64 digits and a NUL */

#endif
