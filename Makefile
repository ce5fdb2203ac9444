# Tributary: one file, one rule for each kind of source. `make help` lists what it can do.
#
# Layout of the output: $(B)/<variant>/..., variant = release | asan | tsan. Each room becomes one
# static library, and a test of a room links that room and those below it only, so that an include
# arrow against the grain fails at link time too.

B     ?= build
Q     ?= @
CC    := $(if $(filter default,$(origin CC)),gcc,$(CC))
NVCC  ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
CUDA  ?= $(if $(NVCC),1,0)
# The deployable set of packages of a fresh Debian or Ubuntu.
APT_PACKAGES := gcc make pkg-config libcmocka-dev libmicrohttpd-dev libjansson-dev libsqlite3-dev \
	libsodium-dev libcurl4-openssl-dev libsecp256k1-dev libinih-dev libpcre2-dev libutf8proc-dev \
	libssl-dev zlib1g-dev nodejs npm
LINT_PACKAGES := clang clang-format cppcheck

WARN   := -Wall -Wextra -Wshadow -Wconversion -Wvla -Wstrict-prototypes -Wmissing-prototypes
CSTD   := -std=c17 -D_GNU_SOURCE -I. -pthread -ffp-contract=off -fno-strict-aliasing $(WARN) $(EXTRA_CFLAGS)
HARDEN := -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
CFLAGS_release := -O2 -g $(HARDEN) $(CSTD)
CFLAGS_asan    := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all $(CSTD)
CFLAGS_tsan    := -O1 -g -fsanitize=thread $(CSTD)
LDFLAGS_release := -pie -Wl,-z,relro,-z,now
LDFLAGS_asan    := -fsanitize=address,undefined
LDFLAGS_tsan    := -fsanitize=thread
LDLIBS := -Wl,--as-needed -lmicrohttpd -linih -lsqlite3 -lsecp256k1 -lcrypto -lsodium -lcurl \
	-ljansson -lpcre2-8 -lutf8proc -lz -lm -lpthread

# ---- rooms, and what each may stand on -----------------------------------------------------------
ROOMS := base kernels engine chain wallet attribution node
SRC_base        := $(wildcard node/base/*.c)
SRC_kernels     := $(wildcard kernels/*.c kernels/ref/*.c kernels/cpu/*.c)
SRC_engine      := $(wildcard engine/*.c engine/tokenizer/*.c engine/chat_template/*.c)
SRC_chain       := $(wildcard chain/*.c)
SRC_wallet      := $(wildcard wallet/*.c)
SRC_attribution := $(wildcard attribution/*.c)
SRC_node        := $(filter-out node/main.c,$(wildcard node/*.c node/cli/*.c))
BELOW_base        := base
BELOW_kernels     := kernels base
BELOW_engine      := engine kernels base
BELOW_chain       := chain base
BELOW_wallet      := wallet chain base
BELOW_attribution := attribution wallet chain base
BELOW_node        := node attribution wallet chain engine kernels base

# Files that need more than the baseline instruction set say so in their name.
ISA = $(if $(filter %_avx2.c,$<),-mavx2 -mfma -mf16c)$(if $(filter %_avx512.c,$<),-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c)$(if $(filter %_avx512bf16.c,$<),-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx2 -mfma -mf16c)
OPT = $(if $(filter kernels/%,$<),-O3)

.PHONY: all help deps demo test unit e2e contracts tsan fuzz fault bench lint clean
all: tributary

tributary: $(B)/release/tributary
	@cp -f $< $@

define VARIANT
$(B)/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	@echo "  cc $(1) $$<"
	$$(Q)$$(CC) $$(CFLAGS_$(1)) $$(OPT) $$(ISA) -MMD -MP -c $$< -o $$@

$(foreach r,$(ROOMS),
$(B)/$(1)/lib$(r).a: $(patsubst %.c,$(B)/$(1)/%.o,$(SRC_$(r)))
	@mkdir -p $$(@D)
	@rm -f $$@
	$$(Q)ar rcs $$@ $$^
)

$(B)/$(1)/tributary: $(B)/$(1)/node/main.o $(foreach r,$(BELOW_node),$(B)/$(1)/lib$(r).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS)
	@echo "built $$@"

$(foreach r,$(filter-out kernels,$(ROOMS)),
$(B)/$(1)/tests/unit/$(r)/%: $(B)/$(1)/tests/unit/$(r)/%.o $(B)/$(1)/tests/support.o $(foreach b,$(BELOW_$(r)),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) -lcmocka
)
$(B)/$(1)/tests/ops/%: $(B)/$(1)/tests/ops/%.o $(B)/$(1)/tests/support.o $(foreach b,$(BELOW_kernels),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) -lcmocka
endef
$(foreach v,release asan tsan,$(eval $(call VARIANT,$(v))))

# The signed types and the contracts' ABI and bytecode travel inside the binary (chain/embedded.c).
$(B)/release/chain/embedded.o $(B)/asan/chain/embedded.o $(B)/tsan/chain/embedded.o: $(wildcard contracts-abi/*.json)

-include $(shell find $(B) -name '*.d' 2>/dev/null)
.SECONDARY:

# ---- tests ---------------------------------------------------------------------------------------
TESTS_base        := $(patsubst %.c,%,$(wildcard tests/unit/base/test_*.c))
TESTS_kernels     := $(patsubst %.c,%,$(wildcard tests/ops/test_*.c))
TESTS_engine      := $(patsubst %.c,%,$(wildcard tests/unit/engine/test_*.c))
TESTS_chain       := $(patsubst %.c,%,$(wildcard tests/unit/chain/test_*.c))
TESTS_wallet      := $(patsubst %.c,%,$(wildcard tests/unit/wallet/test_*.c))
TESTS_attribution := $(patsubst %.c,%,$(wildcard tests/unit/attribution/test_*.c))
TESTS_node        := $(patsubst %.c,%,$(wildcard tests/unit/node/test_*.c))

define ROOM_TESTS
unit-$(1): $$(addprefix $(B)/asan/,$$(TESTS_$(1)))
	@bash tests/run.sh $$^
.PHONY: unit-$(1)
endef
$(foreach r,$(ROOMS),$(eval $(call ROOM_TESTS,$(r))))

clean:
	rm -rf $(B) tributary
