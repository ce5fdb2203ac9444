/* keyfile: a directory of key files, NAME.key each. Inside the room. Any thread, any process. */
#ifndef TRIBUTARY_WALLET_KEYFILE_H
#define TRIBUTARY_WALLET_KEYFILE_H

#include "wallet/keystore.h"

/* Writes DIR/NAME.key, all or nothing, mode 0600; DIR is made if need be (0700). ERR_CONFLICT when
 * the file exists: a key is never overwritten. */
int keyfile_create(const char *dir, const char *name, const uint8_t file[KEYSTORE_BYTES],
                   struct err *err);

/* 0 when there is no such file. ERR_CONFLICT when there is, ERR_INVALID (name), ERR_IO. */
int keyfile_absent(const char *dir, const char *name, struct err *err);

/* Reads DIR/NAME.key. ERR_NOT_FOUND, ERR_FORBIDDEN (readable or writable by group or others, or
 * not a regular file), ERR_CORRUPT (too long to be one), ERR_IO, ERR_INVALID (name). *n_out is its
 * length, at most KEYFILE_MAX_BYTES. */
enum { KEYFILE_MAX_BYTES = 4096 };
int keyfile_read(const char *dir, const char *name, uint8_t out[KEYFILE_MAX_BYTES], size_t *n_out,
                 struct err *err);

/* As keyfile_read and keystore_parse, and the name inside must be the file's. Errors name the
 * path. keyfile_open is the same with keystore_decrypt. */
int keyfile_peek(const char *dir, const char *name, struct keystore_header *out, struct err *err);
struct secret *keyfile_open(const char *dir, const char *name, const struct secret *passphrase,
                            struct keystore_header *out, struct err *err);

/* The names of all key files of DIR, sorted, in *names [*n][WALLET_NAME_BYTES] (free() it). Files
 * with other names are not ours and are passed over. An absent DIR holds none. */
int keyfile_names(const char *dir, char (**names)[WALLET_NAME_BYTES], size_t *n, struct err *err);

#endif
