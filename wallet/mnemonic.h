/* mnemonic: a key as twelve to twenty-four words (BIP-39). Inside the room.
 *
 * Phrases are English, except for mnemonic_seed, which needs no word list. All functions: any
 * thread; secrets in and out are sealed and the caller's to free. */
#ifndef TRIBUTARY_WALLET_MNEMONIC_H
#define TRIBUTARY_WALLET_MNEMONIC_H

#include "wallet/wallet.h"

enum {
    BIP39_WORDS = 2048,
    BIP39_WORD_BYTES = 9, /* the longest word has 8 letters */
    BIP39_PHRASE_WORDS_MAX = 24,
    BIP39_ENTROPY_MAX_BYTES = 32,
    BIP39_SEED_BYTES = 64,
};

extern const char bip39_english[BIP39_WORDS][BIP39_WORD_BYTES]; /* bip39_english.c */

/* A fresh phrase of n_words (12, 15, 18, 21 or 24) from the system's random generator. */
struct secret *mnemonic_generate(unsigned n_words, struct err *err);

/* The phrase of 16, 20, 24, 28 or 32 bytes of entropy, words separated by single spaces.
 * ERR_INVALID for another length. */
struct secret *mnemonic_from_entropy(const struct secret *entropy, struct err *err);

/* The entropy of a phrase as a person typed it: any white space around words, any letter case.
 * ERR_INVALID for a wrong number of words, for an unknown word (named by its position, never
 * spelt: an error is not a secret) and for a wrong checksum. */
struct secret *mnemonic_entropy(const struct secret *typed, struct err *err);

/* Is this a phrase by its looks: at least two runs of letters and nothing else but white space? */
bool mnemonic_looks_like_one(const struct secret *text);

/* The 64-byte seed of a phrase and an optional passphrase (NULL: none), both UTF-8, normalised to
 * NFKD here, as BIP-39 asks. Takes the words as they are: a phrase that a person typed goes
 * through mnemonic_entropy and mnemonic_from_entropy first. ERR_INVALID when not UTF-8. */
struct secret *mnemonic_seed(const struct secret *phrase, const struct secret *passphrase,
                             struct err *err);

#endif
