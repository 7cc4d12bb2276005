import type { Figure } from './bench.ts';

/** What one bench gave, or why it gave nothing. */
export interface Outcome {
  readonly bench: string;
  readonly seconds: number;
  /** Cores that neither the platform nor this process used: other work on the machine. Null: not known. */
  readonly foreignCores: number | null;
  readonly figures: readonly (Figure & { readonly ratio: number | null; readonly met: boolean | null })[];
  readonly error: string | null;
}

/** Adds what follows from a figure: its ratio to the baseline, and whether its target is met. */
export function judged(figure: Figure): Outcome['figures'][number] {
  const { target, baseline, value } = figure;
  const ratio = baseline === undefined ? null : value / baseline.value;
  if (target === undefined) return { ...figure, ratio, met: null };
  const judgedValue = target.of === 'ratio' ? (ratio ?? Number.NaN) : value;
  return { ...figure, ratio, met: 'atMost' in target ? judgedValue <= target.atMost : judgedValue >= target.atLeast };
}

function number(value: number): string {
  if (Math.abs(value) >= 1_000) return Math.round(value).toLocaleString('en');
  return value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
}

function targetText({ target, unit }: Figure): string {
  if (target === undefined) return '';
  const [sign, bound] = 'atMost' in target ? ['≤', target.atMost] : ['≥', target.atLeast];
  return target.of === 'ratio' ? `${sign} ${number(bound)}×` : `${sign} ${bound} ${unit}`;
}

/** The outcomes as a table for a terminal. */
export function table(outcomes: readonly Outcome[]): string {
  const rows = [['', 'figure', 'measured', 'target', '', 'baseline of the same run', 'ratio']];
  for (const outcome of outcomes) {
    const foreign = outcome.foreignCores ?? 0;
    const noisy = foreign < 0.2 ? '' : `; other work took ${foreign.toFixed(1)} cores`;
    rows.push([`${outcome.bench} (${outcome.seconds.toFixed(0)} s${noisy})`]);
    if (outcome.error !== null) rows.push([`  did not finish: ${outcome.error}`]);
    for (const figure of outcome.figures) {
      const { baseline } = figure;
      rows.push([
        '',
        figure.what,
        `${number(figure.value)} ${figure.unit}`,
        targetText(figure),
        figure.met === null ? '' : figure.met ? 'met' : 'MISSED',
        baseline === undefined ? '' : `${number(baseline.value)} ${figure.unit} ${baseline.what}`,
        figure.ratio === null ? '' : `${figure.ratio.toFixed(2)}×`,
      ]);
      if (figure.detail !== undefined) rows.push([`      ${figure.detail}`]);
    }
  }
  // A row of one cell is a line of its own.
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.filter((row) => row.length > 1).map((row) => row[column]?.length ?? 0)),
  );
  return rows
    .map((row) => (row.length === 1 ? (row[0] ?? '') : row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join('  ')))
    .map((line) => line.trimEnd())
    .join('\n');
}
