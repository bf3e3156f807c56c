package proxy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseForward(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Forward
		out  string // if it is not in
	}{
		{in: "8080=web.default:80", want: Forward{TCP, netip.AddrPortFrom(netip.Addr{}, 8080), "web.default:80"}},
		{in: "tcp:8080=web:80", want: Forward{TCP, netip.AddrPortFrom(netip.Addr{}, 8080), "web:80"}, out: "8080=web:80"},
		{in: "udp:5353=10.96.0.10:53", want: Forward{UDP, netip.AddrPortFrom(netip.Addr{}, 5353), "10.96.0.10:53"}},
		{in: "0.0.0.0:80=[fd00::1]:80", want: Forward{TCP, netip.MustParseAddrPort("0.0.0.0:80"), "[fd00::1]:80"}},
		{in: "udp:[::1]:0=a_b.c.:053", want: Forward{UDP, netip.MustParseAddrPort("[::1]:0"), "a_b.c.:53"}, out: "udp:[::1]:0=a_b.c.:53"},
		{in: "[::ffff:127.0.0.1]:1=a:1", want: Forward{TCP, netip.MustParseAddrPort("127.0.0.1:1"), "a:1"}, out: "127.0.0.1:1=a:1"},
	} {
		got, err := ParseForward(test.in)
		if err != nil || got != test.want {
			t.Errorf("ParseForward(%q) is %+v, %v; want %+v", test.in, got, err, test.want)
		}
		if test.out == "" {
			test.out = test.in
		}
		if got.String() != test.out {
			t.Errorf("%q becomes %q, want %q", test.in, got, test.out)
		}
	}
}

func TestParseForwardErrors(t *testing.T) {
	for in, want := range map[string][]string{
		"":                                     {"[udp:]LOCAL=HOST:PORT"},
		"8080":                                 {"[udp:]LOCAL=HOST:PORT", "8080=web.default:80"},
		"70000=a:1":                            {`LOCAL "70000"`, "65535"},
		"-1=a:1":                               {`LOCAL "-1"`, "ADDRESS:PORT"},
		"=a:1":                                 {`LOCAL ""`},
		"localhost:80=a:1":                     {`LOCAL "localhost:80"`, "[::1]:8080"},
		"sctp:80=a:1":                          {`LOCAL "sctp:80"`},
		"UDP:80=a:1":                           {`LOCAL "UDP:80"`},
		"80=a":                                 {`"a"`, "HOST:PORT"},
		"80=:1":                                {`":1"`, "HOST:PORT"},
		"80=a:0":                               {`port "0"`, "1 to 65535"},
		"80=a:http":                            {`port "http"`, "1 to 65535"},
		"80=a:+1":                              {`port "+1"`},
		"80=a..b:1":                            {`"a..b"`, "between dots"},
		"80=a b:1":                             {"letters"},
		"80=fd00::1:80":                        {"[fd00::1]:80"},
		"80=[fd00::g]:80":                      {"not an IPv6 address"},
		"80=a=b:1":                             {"letters"},
		"80=" + strings.Repeat("a", 64) + ":1": {"63"},
		"80=" + strings.Repeat("a.", 200) + "a:1": {"253"},
	} {
		_, err := ParseForward(in)
		wantError(t, err, append(want, "forward")...)
	}
}

func TestParseExpose(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Expose
		out  string
	}{
		{"8080", Expose{TCP, 8080, "127.0.0.1:8080"}, "8080=127.0.0.1:8080"},
		{"udp:53", Expose{UDP, 53, "127.0.0.1:53"}, "udp:53=127.0.0.1:53"},
		{"tcp:80=[::1]:8080", Expose{TCP, 80, "[::1]:8080"}, "80=[::1]:8080"},
		{"80=printer.home:631", Expose{TCP, 80, "printer.home:631"}, "80=printer.home:631"},
	} {
		got, err := ParseExpose(test.in)
		if err != nil || got != test.want || got.String() != test.out {
			t.Errorf("ParseExpose(%q) is %+v (%s), %v; want %+v (%s)", test.in, got, got, err, test.want, test.out)
		}
	}
	for in, want := range map[string]string{
		"":            `PORT ""`,
		"0":           `PORT "0": want a number from 1 to 65535`,
		"65536":       `PORT "65536"`,
		"http":        `PORT "http"`,
		"10.0.0.1:80": `PORT "10.0.0.1:80"`,
		"80=":         `""`,
		"80=8080":     `"8080": want HOST:PORT`,
	} {
		_, err := ParseExpose(in)
		wantError(t, err, "expose", want)
	}
}

func FuzzParseForward(f *testing.F) {
	for _, seed := range []string{"8080=web:80", "udp:[::1]:53=[fd00::1]:53", "0.0.0.0:1=a.b.:1", "=", "udp:"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := ParseForward(in)
		if err != nil {
			return
		}
		if err := got.check(); err != nil {
			t.Errorf("%q was parsed to %+v, which is refused: %v", in, got, err)
		}
		if again, err := ParseForward(got.String()); err != nil || again != got {
			t.Errorf("%q is %+v, written %q is %+v, %v", in, got, got, again, err)
		}
	})
}

func FuzzParseExpose(f *testing.F) {
	for _, seed := range []string{"8080", "udp:53=[::1]:53", "1=a.b.:1", "=", "udp:"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := ParseExpose(in)
		if err != nil {
			return
		}
		if err := got.check(); err != nil {
			t.Errorf("%q was parsed to %+v, which is refused: %v", in, got, err)
		}
		if again, err := ParseExpose(got.String()); err != nil || again != got {
			t.Errorf("%q is %+v, written %q is %+v, %v", in, got, got, again, err)
		}
	})
}
