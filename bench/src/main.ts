import { writeFileSync } from 'node:fs';
import { arch, cpus, release, totalmem } from 'node:os';
import { parseArgs } from 'node:util';
import { build } from '../../bin/src/build.ts';
import type { Bench } from './bench.ts';
import type { Outcome } from './report.ts';

const HELP = `usage: npm run bench -- [NAME …] [--json FILE] [--list]
  NAME         only these benches, in their own order
  --json FILE  writes the figures as JSON as well
  --list       names the benches
Each run starts a platform of its own on free ports of loopback and removes it. Benches of sandboxes on a cluster need the
test bed (bin/testbed up).`;

/** Longest that a bench may take that does not say it. */
const BENCH_MS = 180_000;

async function main(): Promise<number> {
  const { values: flags, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      json: { type: 'string' },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (flags.help) {
    console.log(HELP);
    return 0;
  }
  // The benches import what is built.
  build((line) => console.error(line));
  const { benches } = await import('./benches/index.ts');
  const unknown = positionals.filter((name) => !benches.some((bench) => bench.name === name));
  if (flags.list || unknown.length > 0) {
    if (unknown.length > 0) console.error(`no such bench: ${unknown.join(', ')}`);
    for (const { name, about } of benches) console.log(`${name.padEnd(12)} ${about}`);
    return unknown.length === 0 ? 0 : 1;
  }
  const chosen =
    positionals.length === 0 ? await possible(benches) : benches.filter(({ name }) => positionals.includes(name));
  const outcomes = await runAll(chosen);
  const { table } = await import('./report.ts');
  console.log(`\n${table(outcomes)}`);
  if (flags.json !== undefined) {
    const machine = {
      cpu: cpus()[0]?.model ?? 'unknown',
      cores: cpus().length,
      memoryGib: Math.round(totalmem() / 2 ** 30),
      system: `${process.platform} ${release()} ${arch()}`,
      node: process.version,
    };
    writeFileSync(flags.json, `${JSON.stringify({ at: new Date().toISOString(), machine, outcomes }, null, 2)}\n`);
  }
  return outcomes.every(({ error }) => error === null) ? 0 : 1;
}

/** All of them, without those that need a test bed where none runs. */
async function possible(benches: readonly Bench[]): Promise<readonly Bench[]> {
  const { bedSettings } = await import('./bed.ts');
  try {
    await bedSettings();
    return benches;
  } catch (error) {
    const left = benches.filter(({ onCluster }) => onCluster === true).map(({ name }) => name);
    console.error(`left out: ${left.join(', ')}: ${(error as Error).message}`);
    return benches.filter(({ onCluster }) => onCluster !== true);
  }
}

/** Runs them one after another on one stage. */
async function runAll(benches: readonly Bench[]): Promise<Outcome[]> {
  const { RunStage } = await import('./stage.ts');
  const { within } = await import('./bench.ts');
  const { judged } = await import('./report.ts');
  const { foreignCpu } = await import('./processes.ts');
  const stage = new RunStage();
  const leave = (why: string, exitCode: number): void => {
    console.error(why);
    void stage.end().finally(() => process.exit(exitCode));
  };
  process.once('SIGINT', () => leave('stopping', 130));
  process.once('SIGTERM', () => leave('stopping', 143));
  // What nobody awaited must not leave a platform behind.
  process.once('uncaughtException', (error) => leave(error.stack ?? error.message, 1));

  const outcomes: Outcome[] = [];
  try {
    for (const bench of benches) {
      if (stage.isOver) break;
      console.error(`${bench.name} …`);
      const startedAt = performance.now();
      const foreign = foreignCpu(() => stage.pids());
      let figures: Outcome['figures'] = [];
      let error: string | null = null;
      try {
        figures = (await within(bench.limitMs ?? BENCH_MS, bench.name, bench.run(stage))).map(judged);
      } catch (caught) {
        error = caught instanceof Error ? caught.message : String(caught);
      }
      const seconds = (performance.now() - startedAt) / 1_000;
      const foreignSeconds = foreign();
      const foreignCores = foreignSeconds === null ? null : foreignSeconds / seconds;
      outcomes.push({ bench: bench.name, seconds, foreignCores, figures, error });
    }
  } finally {
    await stage.end();
  }
  return outcomes;
}

process.exitCode = await main();
