import type { Environment, WorkStats } from '@holdfast/contracts';
import { useQuery } from '@tanstack/react-query';
import { api } from '../lib/api.ts';
import { number } from '../lib/format.ts';
import { KeyList } from './key-list.tsx';
import { Snippets, workerSnippets } from './snippets.tsx';
import { Fact, Facts, Time } from './ui.tsx';

const LOOK_MS = 2_000;

/** What waits for the workers of a self-hosted environment, their keys, and how one is run. */
export function EnvironmentWorkers({ environment: { id } }: { environment: Environment }) {
  const stats = useQuery({
    queryKey: ['work-stats', id],
    queryFn: ({ signal }) => api<WorkStats>(`/v1/environments/${id}/work/stats`, { signal }),
    refetchInterval: LOOK_MS,
  }).data;
  return (
    <div className="space-y-5">
      {stats === undefined ? null : (
        <Facts>
          <Fact name="Workers">
            {stats.workers_polling === 0 ? 'No worker is polling' : `${number(stats.workers_polling)} polling`}
          </Fact>
          <Fact name="Sessions waiting">
            {number(stats.depth + stats.pending)}
            {stats.oldest_queued_at === null ? null : (
              <>
                , the oldest since <Time at={stats.oldest_queued_at} />
              </>
            )}
          </Fact>
        </Facts>
      )}
      <div className="space-y-2">
        <KeyList
          path={`/v1/x/environments/${id}/keys`}
          name="environment key"
          whatEnds="the work of its workers and their open streams"
          header={(create) => (
            <div className="flex items-center justify-between gap-4">
              <p className="text-sm text-soft">A key lets workers take this environment’s work, and nothing else.</p>
              {create}
            </div>
          )}
        />
      </div>
      <div className="space-y-2">
        <h2 className="text-sm font-medium">Run a worker</h2>
        <p className="text-sm text-soft">
          The SDK’s own, with a key from above in ENVIRONMENT_KEY. It runs commands as itself: give it a machine or a
          container of its own.
        </p>
        <Snippets snippets={workerSnippets(id)} />
      </div>
    </div>
  );
}
