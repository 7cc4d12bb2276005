import { parseArgs } from 'node:util';
import { Cluster, CRDS } from './cluster.ts';
import { existingCluster } from './settings.ts';
import { Testbed } from './testbed.ts';

const HELP = `usage: bin/testbed COMMAND
  build           compiles and assembles what the bed runs, once per version
  up [--nodes N]  starts the cluster (2 nodes), or what is missing of it; prints the settings for .env
  down            stops and removes everything
  status          what runs; exit code 1 when something is not well
  kubeconfig      the path of the administrator's kubeconfig
  env             the settings for .env
  load            builds the runner's image from this checkout and gives it to all nodes
  sweep ID        removes what an installation of the platform has left on the cluster
  kill PART       breaks a part: etcd, apiserver, controller-manager, scheduler, provisioner, controller,
  start PART      node-1 (a loss of power), node-1-link (its cable); start brings it back
Where: HOLDFAST_TESTBED_DIR (~/.local/state/holdfast-testbed), HOLDFAST_TESTBED_SUBNET (10.87).
HARNESSES names the coding harnesses that the image has (scripted): HARNESSES=scripted,opencode bin/testbed load.
KUBEBUILDER_ASSETS names a folder with programs of the control plane that need not be compiled.
HOLDFAST_TESTBED=existing takes the cluster of KUBECONFIG instead, which must have agent-sandbox installed.`;

const startedAt = Date.now();
const say = (line: string): void => console.error(`testbed: ${line}`);
const seconds = (): string => `${((Date.now() - startedAt) / 1000).toFixed(1)} s`;

/** The commands on a cluster that somebody else looks after: none changes what is not the platform's. */
async function existing(command: string, part: string | undefined, kubeconfig: string): Promise<void> {
  switch (command) {
    case 'up':
    case 'status': {
      const cluster = new Cluster(kubeconfig);
      const missing = await cluster.missingKinds();
      if (missing.length > 0)
        throw new Error(
          `${cluster.server} does not serve ${missing.join(', ')} as v1beta1: install agent-sandbox with its extensions`,
        );
      return say(`${cluster.server} serves the ${CRDS.length} kinds of agent-sandbox; nothing was changed`);
    }
    case 'kubeconfig':
      return console.log(kubeconfig);
    case 'env':
      return console.log(`SANDBOX_PROVIDER=kubernetes\nKUBECONFIG=${kubeconfig}`);
    case 'sweep':
      return new Cluster(kubeconfig).sweep(part ?? '');
    case 'down':
      return say('the cluster of KUBECONFIG stays as it is');
    default:
      throw new Error(`${command} works on the test bed's own cluster only`);
  }
}

async function own(command: string, part: string | undefined, nodes: number | null): Promise<void> {
  const testbed = new Testbed(say);
  const env = async (): Promise<void> => {
    for (const [name, value] of Object.entries(await testbed.environment())) console.log(`${name}=${value}`);
  };
  const named = (): string => {
    if (part === undefined) throw new Error(`${command} what? See bin/testbed --help`);
    return part;
  };
  switch (command) {
    case 'build':
      await testbed.build();
      return say(`built (${seconds()})`);
    case 'up':
      await testbed.up(nodes);
      say(`ready (${seconds()}); kubectl --kubeconfig ${testbed.bed.kubeconfig} get nodes; settings for .env:`);
      return env();
    case 'down':
      await testbed.down();
      return say(`nothing is left (${seconds()})`);
    case 'load':
      return console.log(await testbed.load());
    case 'sweep':
      return new Cluster(testbed.bed.kubeconfig).sweep(named());
    case 'kill':
      return testbed.kill(named());
    case 'start':
      return testbed.start(named());
    case 'kubeconfig':
      return console.log(testbed.bed.kubeconfig);
    case 'env':
      return env();
    case 'status': {
      const lines = await testbed.status();
      for (const { name, well, detail } of lines) console.log(`${name.padEnd(20)} ${well ? 'ok ' : 'BAD'} ${detail}`);
      process.exitCode = lines.every(({ well }) => well) ? 0 : 1;
      return;
    }
    default:
      throw new Error(`${command} is no command\n${HELP}`);
  }
}

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: { help: { type: 'boolean', default: false }, nodes: { type: 'string' } },
});
const [command, part] = positionals;
if (flags.help || command === undefined) console.log(HELP);
else {
  const nodes = flags.nodes === undefined ? null : Number(flags.nodes);
  try {
    const kubeconfig = existingCluster();
    if (kubeconfig !== null) await existing(command, part, kubeconfig);
    else await own(command, part, nodes);
  } catch (error) {
    say(error instanceof Error ? error.message : String(error));
    process.exitCode = 1;
  }
}
