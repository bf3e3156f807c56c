package linux

import "testing"

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct {
		release string
		want    Version
		bad     bool
	}{
		{release: "6.8.0-45-generic", want: Version{6, 8, 0}},
		{release: "6.18.44-fc-v657", want: Version{6, 18, 44}},
		{release: "7.0.0-rc3", want: Version{7, 0, 0}},
		{release: "5.15", want: Version{5, 15, 0}},
		{release: "5.15-vendor", want: Version{5, 15, 0}},
		{release: "4.19.112+", want: Version{4, 19, 112}},
		{release: "", bad: true},
		{release: "6", bad: true},
		{release: "Darwin 23.1", bad: true},
		{release: "99999999999999999999.1.1", bad: true},
	} {
		got, err := ParseVersion(tt.release)
		if (err != nil) != tt.bad || got != tt.want {
			t.Errorf("ParseVersion(%q) = %v, %v, want %v, error %t", tt.release, got, err, tt.want, tt.bad)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for _, tt := range []struct {
		have, than Version
		want       bool
	}{
		{Version{6, 8, 5}, Version{6, 8, 5}, true},
		{Version{6, 8, 4}, Version{6, 8, 5}, false},
		{Version{6, 9, 0}, Version{6, 8, 5}, true},
		{Version{5, 19, 99}, Version{6, 0, 0}, false},
		{Version{7, 0, 0}, Version{6, 18, 44}, true},
		{Version{}, Version{2, 6, 0}, false},
	} {
		if got := tt.have.AtLeast(tt.than.Major, tt.than.Minor, tt.than.Patch); got != tt.want {
			t.Errorf("%v at least %v: %t, want %t", tt.have, tt.than, got, tt.want)
		}
	}
}
