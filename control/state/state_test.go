package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

var dual = SubnetEnv{
	Networks: prefixes("10.244.0.0/16", "fd00:10:244::/56"),
	Subnets:  prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
	MTU:      1450, IPMasq: true,
}

const dualText = `FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
`

func TestBytes(t *testing.T) {
	for _, test := range []struct {
		env  SubnetEnv
		want string
	}{
		{dual, dualText},
		{SubnetEnv{Networks: prefixes("fd00:10:244::/56", "10.244.0.0/16"), Subnets: prefixes("fd00:10:244:1::1/64", "10.244.1.1/24"), MTU: 1450, IPMasq: true}, dualText},
		{SubnetEnv{Networks: prefixes("10.1.0.0/16"), Subnets: prefixes("10.1.9.0/24"), MTU: 8951},
			"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.9.1/24\nFLANNEL_MTU=8951\nFLANNEL_IPMASQ=false\n"},
		{SubnetEnv{Networks: prefixes("fd00::/48"), Subnets: prefixes("fd00:0:0:9::/64"), MTU: 1430, IPMasq: true},
			"FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:9::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"},
	} {
		if have := string(test.env.Bytes()); have != test.want {
			t.Errorf("have:\n%s\nwant:\n%s", have, test.want)
		}
	}
}

func TestParseSubnetEnv(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want SubnetEnv
	}{
		"flannel's": {dualText, dual},
		"by hand": {"\ufeffFLANNEL_IPV6_NETWORK='fd00:10:244::/56'\r\n# pods\r\n\n  export FLANNEL_NETWORK = \"10.244.0.0/16\" # all\r\n" +
			"FLANNEL_SUBNET=10.244.1.1/24\t# ours\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=\"1450\"\nFLANNEL_IPMASQ=true\nOTHER\nWHAT=\"ever", dual},
		"comma lists": {"FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.1.1.1/24, 10.2.1.1/24\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=false",
			SubnetEnv{Networks: prefixes("10.1.0.0/16", "10.2.0.0/16"), Subnets: prefixes("10.1.1.0/24", "10.2.1.0/24"), MTU: 1}},
		"last one counts": {dualText + "FLANNEL_MTU=1400\n",
			SubnetEnv{Networks: dual.Networks, Subnets: dual.Subnets, MTU: 1400, IPMasq: true}},
		"comment for a value": {strings.Replace(dualText, "FLANNEL_IPV6_SUBNET=", "FLANNEL_IPV6_SUBNET=#", 1),
			SubnetEnv{Networks: dual.Networks, Subnets: dual.Subnets[:1], MTU: 1450, IPMasq: true}},
	} {
		have, err := ParseSubnetEnv([]byte(test.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(have, test.want) {
			t.Errorf("%s:\n have %+v\n want %+v", name, have, test.want)
		}
	}
}

func TestParseSubnetEnvErrors(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "missing FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"},
		{"FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=\n", "missing FLANNEL_MTU, FLANNEL_IPMASQ"},
		{dualText + "FLANNEL_MTU\n", "line 7: FLANNEL_MTU without a value"},
		{dualText + "FLANNEL_MTU=0\n", `FLANNEL_MTU is "0"; allowed: 1 to 65535`},
		{dualText + "FLANNEL_MTU=-1450\n", `FLANNEL_MTU is "-1450"`},
		{dualText + "FLANNEL_MTU=many\n", `FLANNEL_MTU is "many"`},
		{dualText + "FLANNEL_IPMASQ=yes\n", `FLANNEL_IPMASQ is "yes"; allowed: true, false`},
		{dualText + "FLANNEL_SUBNET=10.244.1.1\n", `FLANNEL_SUBNET is "10.244.1.1"; allowed: address/length`},
		{dualText + "FLANNEL_SUBNET=fd00::1/64\n", "FLANNEL_SUBNET is"},
		{dualText + "FLANNEL_IPV6_NETWORK=::ffff:10.0.0.0/104\n", "FLANNEL_IPV6_NETWORK is"},
		{dualText + "FLANNEL_SUBNET=\"10.244.1.1/24\n", "line 7: FLANNEL_SUBNET: quote is not closed"},
		{dualText + "FLANNEL_SUBNET=\"10.244.1.1/24\" x\n", "text after the closing quote"},
		{strings.Repeat("#", maxSubnetEnv+1), "at most 65536"},
	} {
		if _, err := ParseSubnetEnv([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.60q: have %v, want %q", test.text, err, test.want)
		}
	}
}

func TestSubnetEnvFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	if _, err := ReadSubnetEnv(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
	for _, env := range []SubnetEnv{dual, {Networks: dual.Networks[:1], Subnets: dual.Subnets[:1], MTU: 9000}} {
		if err := WriteSubnetEnv(path, env); err != nil {
			t.Fatal(err)
		}
		have, err := ReadSubnetEnv(path)
		if err != nil || !reflect.DeepEqual(have, env) {
			t.Fatalf("have %+v, %v, want %+v", have, err, env)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := os.WriteFile(path, []byte("FLANNEL_MTU=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSubnetEnv(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("incomplete file: %v", err)
	}
}

// A reader sees the old content or the new one, never a part.
func TestWriteFileAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	content := func(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%04d\n", i)), 1000) }
	if err := WriteFile(path, content(0), 0o644); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		for i := 1; i <= 50; i++ {
			if err := WriteFile(path, content(i), 0o644); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	for done := false; !done; {
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) != 5000 || !bytes.Equal(data, bytes.Repeat(data[:5], 1000)) {
			t.Fatalf("a part of a file: %d bytes", len(data))
		}
	}
}

func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("data"), 0o644); err == nil {
		t.Fatal("a directory was replaced")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := WriteFile(filepath.Join(dir, "taken", "x", "y", "z"), []byte("data"), 0o644); err != nil {
		t.Errorf("missing directories: %v", err)
	}
}

// Of many that make a file at once, one does, and nobody replaces it.
func TestCreateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "file")
	const writers = 16
	errs := make(chan error, writers)
	for i := range writers {
		go func() { errs <- CreateFile(path, []byte(fmt.Sprint(i)), 0o600) }()
	}
	made := 0
	for range writers {
		switch err := <-errs; {
		case err == nil:
			made++
		case !errors.Is(err, fs.ErrExist):
			t.Error(err)
		}
	}
	before, err := os.ReadFile(path)
	if made != 1 || err != nil {
		t.Fatalf("%d writers made the file: %v", made, err)
	}
	if err := CreateFile(path, []byte("more"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("have %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Errorf("%q became %q", before, after)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func FuzzSubnetEnv(f *testing.F) {
	f.Add([]byte(dualText))
	f.Add([]byte("FLANNEL_NETWORK='10.1.0.0/16,10.2.0.0/16' # two\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=0"))
	f.Add([]byte("FLANNEL_NETWORK\nFLANNEL_SUBNET=\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		env, err := ParseSubnetEnv(data)
		if err != nil {
			return
		}
		for _, subnet := range env.Subnets {
			if subnet.IsSingleIP() || gateway(subnet).Masked() != subnet {
				return // no room for a gateway: what is written is another subnet
			}
		}
		// IPv4 comes first, whatever the order of the lines.
		again, err := ParseSubnetEnv(env.Bytes())
		if err != nil || !reflect.DeepEqual(again, env) {
			t.Fatalf("have %+v, %v, want %+v", again, err, env)
		}
	})
}
