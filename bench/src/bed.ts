import { existsSync } from 'node:fs';
import { Cluster } from '../../k8s/testbed/src/cluster.ts';
import { existingCluster } from '../../k8s/testbed/src/settings.ts';
import { Testbed } from '../../k8s/testbed/src/testbed.ts';

/**
 * The settings of a platform on the test bed, or on the cluster that `HOLDFAST_TESTBED=existing` chooses.
 * @throws where none answers
 */
export async function bedSettings(): Promise<Readonly<Record<string, string>>> {
  const existing = existingCluster();
  const settings =
    existing === null ? await new Testbed().environment() : { SANDBOX_PROVIDER: 'kubernetes', KUBECONFIG: existing };
  const kubeconfig = settings['KUBECONFIG'] ?? '';
  const ready = existsSync(kubeconfig) && (await new Cluster(kubeconfig).isReady().catch(() => false));
  if (!ready) throw new Error('no test bed runs; start one with bin/testbed up');
  return settings;
}
