# weft: build, show, test. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO          ?= go
CACHE       := $(CURDIR)/.cache
BIN         := $(CURDIR)/bin
GOFLAGS_BIN := -trimpath -ldflags=-s\ -w
# gRPC's debug pages are made with html/template, which calls methods by name: with it in, the linker drops no method of any
# type, a fifth of the program.
TAGS        := -tags=grpcnotrace
CNI_VERSION := v1.9.1
LINT_VERSION := v2.15.0
# The newest whose dependencies the module proxy serves.
FLANNEL_VERSION := v0.26.7
CNI_PLUGINS := $(addprefix $(CACHE)/cni/,bridge loopback host-local portmap)
PLATFORMS   := $(foreach os,linux darwin windows freebsd,$(foreach arch,amd64 arm64,$(os)/$(arch)))
FUZZTIME    ?= 20s
SOAKTIME    ?= 1h

export CGO_ENABLED := 0
# Where ip, bridge and nft are; an ordinary user's PATH may lack it.
export PATH := $(PATH):/usr/sbin:/sbin
# Programs that tests and the demo start.
export WEFT_BIN := $(BIN)/weft
export WEFT_CNI_BIN := $(BIN)/weft-cni
export WEFT_LAB_BIN := $(BIN)/weft-lab
export WEFT_KUBE_BIN := $(CACHE)/weft-kube
export FLANNELD_BIN := $(CACHE)/flannel
export WIREGUARD_GO_BIN := $(CACHE)/wireguard-go
export CNI_PATH := $(CACHE)/cni
# Debian's kernel, which tests start an emulated machine with.
export WEFT_GUEST_LINUX := $(CACHE)/linux

.PHONY: help build demo test e2e lint cross fuzz cover bench soak clean cni kube tools

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-7s %s\n", $$1, $$2}'

build: ## build bin/weft, bin/weft-cni and bin/weft-lab
	@mkdir -p $(BIN)
	$(GO) build $(GOFLAGS_BIN) $(TAGS) -o $(BIN)/ ./cmd/...

demo: build cni $(if $(KUBE),kube) ## show unlike hosts in one network (KUBE=1: on a real kube-apiserver; JSON=1: one document)
	@$(BIN)/weft-lab demo $(if $(KUBE),--kube=$(WEFT_KUBE_BIN)) $(if $(JSON),--json) $(if $(KEEP),--keep)

test: build cni ## every test that needs no outside service; it builds, or installs with apt-get, what it needs
	@.ci/tools ip bridge nft setpriv pidof gcc ethtool
	$(GO) vet ./...
	CGO_ENABLED=1 $(GO) test -race ./...

e2e: tools build cni kube $(FLANNELD_BIN) $(WIREGUARD_GO_BIN) $(WEFT_GUEST_LINUX) ## whole programs on a real kube-apiserver, a second kernel, beside flanneld and wireguard-go
	$(GO) test -tags e2e -count=1 -timeout 30m ./bench/cluster ./bench/datapath ./bench/demo ./bench/differential ./bench/e2e ./tunnel/datapath

lint: ## golangci-lint with the chosen linters, and formatting
	@mkdir -p $(CACHE)/tools
	@test -x $(CACHE)/tools/golangci-lint || { echo "building golangci-lint $(LINT_VERSION) (once)"; \
	  GOBIN=$(CACHE)/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION); }
	$(CACHE)/tools/golangci-lint run ./...
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not gofmt'ed: $$unformatted"; exit 1; }

# go list -export compiles packages and their tests, and leaves out the linking.
cross: ## vet everything and compile all tests for every platform
	@for p in $(PLATFORMS); do \
	  echo "cross $$p"; \
	  GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) vet ./...; \
	  GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) list -test -export -f '{{with .Error}}{{.}}{{end}}' ./...; \
	done

fuzz: ## run every fuzz target for FUZZTIME (20s)
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "fuzz $$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; \
	done

cover: build cni ## coverage of make test, as bin/cover.html
	$(GO) test -coverprofile=$(BIN)/cover.out ./...
	$(GO) tool cover -html=$(BIN)/cover.out -o $(BIN)/cover.html
	$(GO) tool cover -func=$(BIN)/cover.out | tail -1

bench: build ## print benchmark figures of the datapath
	$(GO) test -run '^$$' -bench . -benchmem ./tunnel/...

soak: ## an hour of mixed traffic through engines while peers come and go
	WEFT_SOAK=$(SOAKTIME) $(GO) test -count=1 -timeout 24h -v -run TestSoak ./tunnel/datapath

clean: ## remove bin and .cache
	rm -rf $(BIN) $(CACHE)

cni: $(if $(filter linux,$(shell $(GO) env GOOS)),$(CNI_PLUGINS))

$(CACHE)/cni/bridge $(CACHE)/cni/loopback: PLUGIN = main/$(@F)
$(CACHE)/cni/host-local: PLUGIN = ipam/$(@F)
$(CACHE)/cni/portmap: PLUGIN = meta/$(@F)
$(CNI_PLUGINS):
	@echo "building CNI plugin $(@F) $(CNI_VERSION)"
	@GOBIN=$(CACHE)/cni $(GO) install $(GOFLAGS_BIN) github.com/containernetworking/plugins/plugins/$(PLUGIN)@$(CNI_VERSION)

$(CACHE)/flannel:
	@echo "building flanneld $(FLANNEL_VERSION) (once)"
	@CGO_ENABLED=1 GOBIN=$(CACHE) $(GO) install $(GOFLAGS_BIN) github.com/flannel-io/flannel@$(FLANNEL_VERSION)

# Of the version in go.mod.
$(WIREGUARD_GO_BIN): go.mod
	@echo "building wireguard-go"
	@$(GO) build $(GOFLAGS_BIN) -o $@ golang.zx2c4.com/wireguard

$(WEFT_GUEST_LINUX):
	@bench/e2e/linux.sh $@

kube:
	@bench/kube/build.sh $(WEFT_KUBE_BIN)

tools:
	@.ci/tools
