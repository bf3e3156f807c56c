package datapath

import (
	"fmt"
	"image/color"
	"io"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	chartWidth  = 20 * vg.Centimeter
	panelHeight = 7 * vg.Centimeter
	groupWidth  = 0.7 // share of the room of a path that its bars take
)

// barColors are those of the underlays, told apart by people who see few
// colours too.
var barColors = []color.Color{
	color.RGBA{0x33, 0x66, 0x99, 0xff}, color.RGBA{0xee, 0x99, 0x44, 0xff}, color.RGBA{0x99, 0xbb, 0x77, 0xff},
}

// WriteSVG draws a bar chart: a panel per figure, in it a group per path, in
// that a bar per underlay with its range.
func (r Report) WriteSVG(w io.Writer) error {
	tests := distinct(r.Rows, func(row Row) string { return row.Test })
	canvas := vgsvg.New(chartWidth, panelHeight*vg.Length(max(len(tests), 1)))
	margin := vg.Points(10)
	tiles := draw.Tiles{Rows: len(tests), Cols: 1, PadY: margin, PadTop: margin, PadBottom: margin, PadLeft: margin, PadRight: margin}
	for i, test := range tests {
		panel, err := r.panel(test)
		if err != nil {
			return fmt.Errorf("draw %s: %w", test, err)
		}
		panel.Draw(tiles.At(draw.New(canvas), 0, i))
	}
	if _, err := canvas.WriteTo(w); err != nil {
		return fmt.Errorf("write chart: %w", err)
	}
	return nil
}

// panel draws one figure of all paths and underlays.
func (r Report) panel(test string) (*plot.Plot, error) {
	var rows []Row
	for _, row := range r.Rows {
		if row.Test == test {
			rows = append(rows, row)
		}
	}
	paths := distinct(rows, func(row Row) string { return row.Path })
	underlays := distinct(rows, func(row Row) string { return row.Underlay })
	p := plot.New()
	p.Title.Text = test
	if lowerIsBetter(test) {
		p.Title.Text += " (lower is better)"
	}
	p.Y.Label.Text = rows[0].Unit
	p.Legend.Top = true
	p.Legend.Padding = vg.Points(3)
	room := chartWidth * 0.85 / vg.Length(len(paths)) // without the vertical axis
	width := room * groupWidth / vg.Length(len(underlays))
	for i, underlay := range underlays {
		offset := width * (vg.Length(i) - vg.Length(len(underlays)-1)/2)
		bars, ranges, err := r.bars(underlay, test, paths, width, offset)
		if err != nil {
			return nil, err
		}
		bars.Color = barColors[i%len(barColors)]
		p.Add(bars, ranges)
		p.Legend.Add("underlay "+underlay+"  ", bars) // room for a wider typeface than was measured with
	}
	p.NominalX(paths...)
	p.X.Min, p.X.Max = -0.5, float64(len(paths))-0.5
	p.Y.Min = 0
	p.Y.Max *= 1.05 + 0.1*float64(len(underlays)) // the legend is above the bars
	useSans(p)
	return p, nil
}

// bars are one figure of all paths over one underlay.
func (r Report) bars(underlay, test string, paths []string, width, offset vg.Length) (*plotter.BarChart, *ranges, error) {
	values := make(plotter.Values, len(paths))
	marks := &ranges{offset: offset}
	for i, path := range paths {
		row := r.row(underlay, path, test)
		if row == nil || row.Median == nil {
			continue
		}
		values[i] = *row.Median
		marks.of = append(marks.of, span{float64(i), *row.Min, *row.Max})
	}
	bars, err := plotter.NewBarChart(values, width)
	if err != nil {
		return nil, nil, err
	}
	bars.Offset = offset
	bars.LineStyle.Width = 0
	return bars, marks, nil
}

// ranges draws a line from the least to the largest value over bars that stand
// beside their place.
type ranges struct {
	of     []span
	offset vg.Length
}

type span struct{ x, min, max float64 }

// Plot implements plot.Plotter.
func (r *ranges) Plot(canvas draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&canvas)
	style := draw.LineStyle{Color: color.Gray{0x44}, Width: vg.Points(0.8)}
	for _, s := range r.of {
		x := toX(s.x) + r.offset
		canvas.StrokeLine2(style, x, toY(s.min), x, toY(s.max))
	}
}

// DataRange implements plot.DataRanger.
func (r *ranges) DataRange() (xmin, xmax, ymin, ymax float64) {
	xmin, xmax, ymin, ymax = math.Inf(1), math.Inf(-1), 0, math.Inf(-1)
	for _, s := range r.of {
		xmin, xmax, ymax = min(xmin, s.x), max(xmax, s.x), max(ymax, s.max)
	}
	return xmin, xmax, ymin, ymax
}

// useSans changes the typeface of everything written on a plot, and turns the
// names of paths so that they fit beside each other.
func useSans(p *plot.Plot) {
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.Legend.TextStyle,
		&p.X.Label.TextStyle, &p.X.Tick.Label, &p.Y.Label.TextStyle, &p.Y.Tick.Label,
	} {
		style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: style.Font.Size}
	}
	p.X.Tick.Label.Rotation = math.Pi / 9
	p.X.Tick.Label.XAlign, p.X.Tick.Label.YAlign = draw.XRight, draw.YCenter
}
