import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { existingCluster, loadBed } from '../../k8s/testbed/src/settings.ts';
import { Testbed } from '../../k8s/testbed/src/testbed.ts';
import { build } from './build.ts';

/** `bin/test`: runs every check, prints what each found, and ends with one line that counts them all. */
interface Count {
  passed: number;
  failed: number;
}

const { values: flags } = parseArgs({
  options: {
    fast: { type: 'boolean', default: false },
    k8s: { type: 'boolean', default: false },
    all: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
if (flags.help) {
  console.log(`usage: bin/test [--fast | --k8s | --all]
  (no flag)  lint, types and every spec with real servers on this machine
  --fast     lint, types and pure specs only, in under two minutes
  --k8s      the specs with a real Kubernetes cluster, which bin/testbed starts
  --all      everything`);
  process.exit(0);
}

function run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<number> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: 'inherit', env: { ...process.env, ...env } });
    child.on('error', (error) => {
      console.error(`${command}: ${error.message}`);
      resolve(127);
    });
    child.on('exit', (code, signal) => resolve(code ?? (signal === null ? 1 : 128)));
  });
}

/** A check that passes or fails as a whole. */
async function check(name: string, command: string, ...args: string[]): Promise<Count> {
  console.log(`\n== ${name}: ${command} ${args.join(' ')}`);
  const code = await run(command, args);
  console.log(`== ${name}: ${code === 0 ? 'passed' : `FAILED (exit ${code})`}`);
  return code === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

interface JestReport {
  numPassedTests: number;
  numFailedTests: number;
  numPendingTests: number;
  numTodoTests: number;
  numRuntimeErrorTestSuites: number;
  success: boolean;
}

/** Specs whose path matches; a suite that cannot run, and a skipped test, count as failures. */
async function specs(
  name: string,
  pattern: string,
  extra: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<Count> {
  console.log(`\n== ${name}`);
  const dir = await mkdtemp(join(tmpdir(), 'holdfast-report-'));
  const report = join(dir, 'jest.json');
  const code = await run(
    'jest',
    ['--testPathPatterns', pattern, '--json', '--outputFile', report, '--silent=false', ...extra],
    {
      NODE_OPTIONS: '--experimental-vm-modules --no-warnings',
      FORCE_COLOR: '0',
      ...env,
    },
  );
  let count: Count;
  try {
    const found = JSON.parse(await readFile(report, 'utf8')) as JestReport;
    const failed = found.numFailedTests + found.numRuntimeErrorTestSuites + found.numPendingTests + found.numTodoTests;
    count = { passed: found.numPassedTests, failed: failed === 0 && code !== 0 ? 1 : failed };
  } catch {
    count = { passed: 0, failed: 1 };
  }
  await rm(dir, { recursive: true, force: true });
  console.log(`== ${name}: ${count.passed} passed, ${count.failed} failed`);
  return count;
}

/** Runs specs that need what is built. */
async function built(work: () => Promise<Count>): Promise<Count> {
  try {
    build(console.log);
  } catch (error) {
    console.error(error);
    return { passed: 0, failed: 1 };
  }
  return work();
}

const withServers = (): Promise<Count> =>
  specs('specs with real servers', '\\.int\\.spec\\.ts$', ['--testTimeout=30000', '--maxWorkers=2']);

/** Each spec starts a platform of its own, with ports and a state folder of its own; two at a time, because they mostly wait. */
const endToEnd = (): Promise<Count> =>
  specs('end to end', '\\.e2e\\.spec\\.ts$', ['--testTimeout=120000', '--maxWorkers=2']);

/**
 * Suites that break nothing of the cluster, so two of them run side by side: each has a platform of its own, and most of
 * their time is waiting. Those of the platform that say most about where its sandboxes run are among them; with the
 * environment all of them can be run so.
 */
const GENTLE = [
  'services/sandbox/src/kubernetes/(attacks|cluster|load|watched)\\.k8s\\.spec\\.ts$',
  'services/(sandbox/src/sandbox|session/src/chaos|gateway-api/src/sdk)\\.e2e\\.spec\\.ts$',
].join('|');
/** All others hold something to a time, or may kill a node or the API server under everybody. */
const ALONE = '(?<!/(attacks|cluster|load|watched))\\.k8s\\.spec\\.ts$';

/** On the cluster of bin/testbed, or the one that HOLDFAST_TESTBED=existing names; it stays when it was there before. */
async function onKubernetes(): Promise<Count> {
  const own = existingCluster() === null;
  const wasUp = !own || existsSync(loadBed().kubeconfig);
  const count = await check('test bed', 'bin/testbed', 'up');
  if (own && count.failed === 0) add(count, await check('image', 'bin/testbed', 'load'));
  if (count.failed === 0) {
    const settings = own ? await new Testbed().environment() : { SANDBOX_PROVIDER: 'kubernetes' };
    const patience = '--testTimeout=240000';
    add(count, await specs('on Kubernetes, two at a time', GENTLE, [patience, '--maxWorkers=2'], settings));
    add(count, await specs('on Kubernetes, one at a time', ALONE, [patience, '--runInBand'], settings));
  }
  if (!wasUp) add(count, await check('end of the test bed', 'bin/testbed', 'down'));
  return count;
}

function add(sum: Count, { passed, failed }: Count): void {
  sum.passed += passed;
  sum.failed += failed;
}

const total: Count = { passed: 0, failed: 0 };
const quick: (() => Promise<Count>)[] = [
  () => check('lint', 'npm', 'run', '--silent', 'lint'),
  () => check('types', 'tsc', '--noEmit', '-p', 'tsconfig.json'),
  () => check('types of the dashboard', 'nx', 'run', '@holdfast/dashboard:typecheck'),
  () => specs('pure specs', '(?<!\\.(int|e2e|k8s))\\.spec\\.ts$'),
];
const servers = [() => built(withServers), () => built(endToEnd)];
const steps = flags.all
  ? [...quick, ...servers, () => built(onKubernetes)]
  : flags.k8s
    ? [() => built(onKubernetes)]
    : flags.fast
      ? quick
      : [...quick, ...servers];
for (const step of steps) add(total, await step());
console.log(`\n${total.passed} passed, ${total.failed} failed`);
process.exit(total.failed === 0 ? 0 : 1);
