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
SRC_cuda := $(if $(filter 1,$(CUDA)),$(wildcard kernels/cuda/*.cu))
# The deployable set of packages of a fresh Debian or Ubuntu.
APT_PACKAGES := gcc make pkg-config libcmocka-dev libmicrohttpd-dev libjansson-dev libsqlite3-dev \
	libsodium-dev libcurl4-openssl-dev libsecp256k1-dev libinih-dev libpcre2-dev libutf8proc-dev \
	libssl-dev zlib1g-dev nodejs npm curl
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
# The CUDA backend is in the release variant only: the sanitizers and the CUDA runtime share no address space.
NVCCFLAGS := -std=c++20 -O3 -lineinfo -I. -gencode=arch=compute_90a,code=sm_90a -Xcompiler -fPIE,-Wall,-Wextra
ifneq ($(SRC_cuda),)
CFLAGS_release += -DTRIBUTARY_CUDA
CUDA_LIB := $(dir $(NVCC))../lib64
LDLIBS_release := -L$(CUDA_LIB) -lcudart_static -lstdc++ -ldl -lrt
endif
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
SRC_bench       := $(addprefix tests/bench/,workload.c latency.c answer.c load_http.c $(addprefix replay_,rig.c run.c report.c rows.c)) # what programs there share
SRC_node        := $(filter-out node/main.c,$(wildcard node/*.c node/cli/*.c))
BELOW_base        := base
BELOW_kernels     := kernels base
BELOW_engine      := engine kernels base
BELOW_chain       := chain base
BELOW_wallet      := wallet chain base
BELOW_attribution := attribution wallet chain base
BELOW_node        := node attribution wallet chain engine kernels base

# Files that need more than the baseline instruction set say so in their name. They are all unrolled
# vector code: UBSan's check of every pointer sum in them multiplies the compile time by ten, so they
# keep ASan only; kernels/ is compiled -O3 where speed matters.
ISA_avx2       := -mavx2 -mfma -mf16c -fno-sanitize=undefined
ISA_avx512     := $(ISA_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
ISA_avx512vnni := $(ISA_avx512) -mavx512vnni
ISA = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $<)))))
OPT = $(if $(filter kernels/%,$<),$(if $(findstring /release/,$@),-O3))

.PHONY: all help deps deps-lint demo test test-build tsan tsan-build fuzz fault soak sim bench bench-programs bench-gpu residency-gpu check-gpu lint clean
CUDA_NOTICE := $(if $(SRC_cuda),,@echo "built without the CUDA backend ($(if $(NVCC),CUDA=0,no nvcc found)); --backend cpu and ref work")
all: tributary
	$(CUDA_NOTICE)

tributary: $(B)/release/tributary
	@cp -f $< $@

define VARIANT
$(B)/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	@echo "  cc $(1) $$<"
	$$(Q)$$(CC) $$(CFLAGS_$(1)) $$(OPT) $$(ISA) -MMD -MP -c $$< -o $$@

$(B)/$(1)/%.cu.o: %.cu
	@mkdir -p $$(@D)
	@echo "  nvcc $$<"
	$$(Q)$$(NVCC) $$(NVCCFLAGS) -MMD -MP -MF $$(@:.o=.d) -c $$< -o $$@

$(foreach r,$(ROOMS),
$(B)/$(1)/lib$(r).a: $(if $(filter release.kernels,$(1).$(r)),$(addprefix $(B)/$(1)/,$(addsuffix .o,$(SRC_cuda)))) $(patsubst %.c,$(B)/$(1)/%.o,$(SRC_$(r)))
	@mkdir -p $$(@D)
	@rm -f $$@
	$$(Q)ar rcs $$@ $$^
)

$(B)/$(1)/tributary: $(B)/$(1)/node/main.o $(foreach r,$(BELOW_node),$(B)/$(1)/lib$(r).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) $$(LDLIBS_$(1))
	@echo "built $$@"

$(foreach r,$(filter-out kernels,$(ROOMS)),
$(B)/$(1)/tests/unit/$(r)/%: $(B)/$(1)/tests/unit/$(r)/%.o $(B)/$(1)/tests/support.o $(foreach b,$(BELOW_$(r)),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) $$(LDLIBS_$(1)) -lcmocka
)
$(B)/$(1)/libbench.a: $(patsubst %.c,$(B)/$(1)/%.o,$(SRC_bench))
	@mkdir -p $$(@D)
	@rm -f $$@
	$$(Q)ar rcs $$@ $$^

$(B)/$(1)/tests/bench/%: $(B)/$(1)/tests/bench/%.o $(B)/$(1)/libbench.a $(foreach b,$(BELOW_engine),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) $$(LDLIBS_$(1))

$(B)/$(1)/tests/bench/test_%: $(B)/$(1)/tests/bench/test_%.o $(B)/$(1)/tests/support.o $(B)/$(1)/libbench.a $(foreach b,$(BELOW_engine),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) $$(LDLIBS_$(1)) -lcmocka

$(B)/$(1)/tests/sim/sim_scheduler: $(B)/$(1)/tests/sim/sim_scheduler.o $(B)/$(1)/tests/sim/sim.o $(foreach b,$(BELOW_engine),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) $$(LDLIBS_$(1))

$(B)/$(1)/tests/soak/%: $(B)/$(1)/tests/soak/%.o $(foreach b,$(BELOW_engine),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -Wl,--wrap=prefix_key_root -o $$@ $$^ $$(LDLIBS) $$(LDLIBS_$(1))

$(B)/$(1)/tests/ops/%: $(B)/$(1)/tests/ops/%.o $(B)/$(1)/tests/support.o $(foreach b,$(BELOW_kernels),$(B)/$(1)/lib$(b).a)
	$$(Q)$$(CC) $$(LDFLAGS_$(1)) -o $$@ $$^ $$(LDLIBS) $$(LDLIBS_$(1)) -lcmocka
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
TESTS_bench       := $(patsubst %.c,%,$(wildcard tests/bench/test_*.c))

define ROOM_TESTS
unit-$(1): $$(addprefix $(B)/asan/,$$(TESTS_$(1)))
	@bash tests/run.sh $$^
.PHONY: unit-$(1)
endef
$(foreach r,$(ROOMS) bench,$(eval $(call ROOM_TESTS,$(r))))

# Programs that the end-to-end tests run beside the node.
E2E_PROGRAMS := $(patsubst %.c,$(B)/release/%,$(wildcard tests/e2e/*.c))
$(E2E_PROGRAMS): %: %.o $(foreach b,$(BELOW_wallet),$(B)/release/lib$(b).a)
	$(Q)$(CC) $(LDFLAGS_release) -o $@ $^ $(LDLIBS)

ALL_TESTS := $(foreach r,$(ROOMS) bench,$(TESTS_$(r)))
# Tests whose first line says so run without sanitizers, alone or as well (whole-model goldens, CUDA).
first_line_says = $(patsubst %.c,%,$(shell for f in $(addsuffix .c,$(ALL_TESTS)); do head -1 $$f | grep -q 'variant: $(1)' && echo $$f; done))
ASAN_TESTS := $(filter-out $(call first_line_says,release),$(ALL_TESTS))
RELEASE_TESTS := $(call first_line_says,release) $(call first_line_says,both)
FUZZ_TARGETS := $(patsubst %.c,%,$(wildcard tests/fuzz/fuzz_*.c))
ABOVE_ALL := $(foreach b,$(BELOW_node),$(B)/asan/lib$(b).a)

# Fuzz targets: replayed from their corpus by `make test`; `make fuzz` lets libFuzzer explore.
$(addprefix $(B)/asan/,$(FUZZ_TARGETS)): %: %.o $(B)/asan/tests/fuzz/replay_main.o $(ABOVE_ALL)
	$(Q)$(CC) $(LDFLAGS_asan) -o $@ $^ $(LDLIBS)

# No parser computes: ref stands in for cpu, whose files each want instructions of their own.
FUZZ_SECONDS ?= 60
FUZZ_EXTRA := node/json_util.c node/openai_request.c node/signed_fields.c node/signed_request.c node/signed_voucher.c node/api_error.c $(wildcard node/http*.c)
fuzz:
	@command -v clang >/dev/null || { echo "make fuzz needs clang (make deps-lint)"; exit 1; }
	@for t in $(notdir $(FUZZ_TARGETS)); do \
	    mkdir -p $(B)/fuzz/corpus/$$t && echo "== $$t, $(FUZZ_SECONDS) s" && \
	    clang -O1 -g -fsanitize=fuzzer,address,undefined $(CSTD) -Dops_cpu=ops_ref -Wno-unknown-warning-option -o $(B)/fuzz/$$t tests/fuzz/$$t.c \
	        $(SRC_base) $(SRC_chain) $(SRC_wallet) $(SRC_attribution) $(SRC_engine) $(filter-out kernels/cpu/%,$(SRC_kernels)) $(FUZZ_EXTRA) $(LDLIBS) && \
	    $(B)/fuzz/$$t -max_total_time=$(FUZZ_SECONDS) -max_len=65536 $(B)/fuzz/corpus/$$t tests/fuzz/corpus/$${t#fuzz_} || exit 1; \
	done

test: deps
	@$(MAKE) --no-print-directory -j2 test-build
	@bash tests/test.sh $(B)

test-build: $(B)/release/tributary $(B)/release/tests/soak/soak $(B)/release/tests/sim/sim_scheduler $(addprefix $(B)/release/tests/bench/,replay load make_random) $(E2E_PROGRAMS) $(addprefix $(B)/asan/,$(ASAN_TESTS) $(FUZZ_TARGETS)) $(addprefix $(B)/release/,$(RELEASE_TESTS))

# The threads of every room under ThreadSanitizer.
tsan: deps
	@$(MAKE) --no-print-directory -j2 tsan-build
	@TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1" bash tests/run.sh $(addprefix $(B)/tsan/,$(TSAN_TESTS))
TSAN_TESTS := $(filter tests/unit/base/% tests/unit/attribution/% tests/unit/node/% tests/unit/wallet/% tests/ops/% tests/unit/engine/test_engine% tests/unit/engine/test_tensor_read%,$(ASAN_TESTS))
tsan-build: $(addprefix $(B)/tsan/,$(TSAN_TESTS))

lint:
	@bash tests/lint.sh

deps:
	@bash .ci/deps.sh "$(APT_PACKAGES)"
deps-lint:
	@bash .ci/deps.sh "$(APT_PACKAGES) $(LINT_PACKAGES)"

demo: deps
	@$(MAKE) --no-print-directory -j2 $(B)/release/tributary
	$(CUDA_NOTICE)
	@TRIBUTARY=$(B)/release/tributary node tests/e2e/demo.mjs

# kill -9 at 200 random moments (DESIGN section 6); `make test` runs a short one.
fault: deps
	@$(MAKE) --no-print-directory -j2 $(B)/release/tributary
	@TRIBUTARY=$(B)/release/tributary FAULT_KILLS=$(or $(KILLS),200) node tests/e2e/fault.test.mjs

bench: deps
	@$(MAKE) --no-print-directory -j2 $(B)/release/tributary
	@$(B)/release/tributary bench --commit $$(git describe --always --dirty 2>/dev/null || echo unknown)

# Adapters churning under load, every token checked; `make test` runs a short one. For a GPU:
# make soak SOAK="--backend cuda --shape 1b --tokens 1000000 --seconds 300 --changes 10 --streams 128"
soak: deps
	@$(MAKE) --no-print-directory -j2 $(B)/release/tests/soak/soak
	@$(B)/release/tests/soak/soak $(SOAK)

# The scheduler in virtual time; `make test` runs a short one. make sim SIM="--requests 1000000"
sim: $(B)/release/tests/sim/sim_scheduler
	@$(B)/release/tests/sim/sim_scheduler $(SIM)

# One H100 (or another Hopper card), 8 minutes: tests/bench/gpu.sh says what.
BENCH_PROGRAMS := $(patsubst %.c,$(B)/release/%,$(filter-out $(SRC_bench) tests/bench/test_%.c,$(wildcard tests/bench/*.c)))
bench-programs: $(B)/release/tributary $(BENCH_PROGRAMS)
bench-gpu: bench-programs
	@bash tests/bench/gpu.sh $(B)/release tests/bench/results

# Thousands of adapters on one GPU, 8 minutes and 130 GB of host memory: tests/bench/residency_gpu.sh.
residency-gpu: bench-programs $(B)/release/tests/soak/soak
	@bash tests/bench/residency_gpu.sh $(B)/release tests/bench/results

check-gpu: $(patsubst %.c,$(B)/release/%,$(wildcard tests/ops/test_cuda*.c))
	@bash tests/bench/sanitize_gpu.sh $(B)/release

help:
	@echo 'make            build ./tributary ($(if $(SRC_cuda),with the CUDA backend,without the CUDA backend))'
	@echo 'make demo       serve four adapters, stream answers, settle on a local chain, show who earned what'
	@echo 'make test       all tests: units under ASan and UBSan, vectors, contracts, end to end (installs what it needs)'
	@echo 'make tsan       the threaded rooms under ThreadSanitizer'
	@echo 'make fuzz       every parser under libFuzzer, FUZZ_SECONDS=60 each'
	@echo 'make fault      200 kills at random moments; the books must come back equal (KILLS=n)'
	@echo 'make soak       adapters churning under load, every token compared with its adapter alone (SOAK=flags)'
	@echo 'make sim        the scheduler in virtual time: shares, isolation, priorities, preemption (SIM=flags)'
	@echo 'make bench      tokens/s of this CPU: base, one adapter, all different'
	@echo 'make bench-gpu  operators, decode and prefill of an 8B model on a GPU, as CSV under tests/bench/results/'
	@echo 'make residency-gpu  misses, 10,000 adapters, fairness, mixed ranks on a GPU, as CSV there too'
	@echo 'make check-gpu  the CUDA operator tests under memcheck, initcheck, synccheck and racecheck'
	@echo 'make lint       include arrows, third-party rooms, format, cppcheck'
	@echo 'make deps       apt-get and npm ci of what is missing (deps-lint: the tools of make lint too)'
	@echo 'make unit-ROOM  the tests of one room: $(ROOMS) bench'
	@echo 'make clean      remove $(B)/'
	@echo 'Options: B=dir (output), CC=clang, CUDA=0, Q= (show commands), EXTRA_CFLAGS=...'

clean:
	rm -rf $(B) tributary
