'use client';
import type { Agent } from '@holdfast/contracts';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { History, Play } from 'lucide-react';
import { useRouter } from 'next/navigation';
import { useState } from 'react';
import { toast } from 'sonner';
import { ApiError, api, messageOf } from '../lib/api.ts';
import { AgentForm } from './agent-form.tsx';
import { Paged, usePages } from './paged.tsx';
import { StartSession } from './sessions-page.tsx';
import { Badge, Button, Confirm, Failure, Loading, PageHeader, Panel, Time } from './ui.tsx';

export function NewAgentPage() {
  const router = useRouter();
  const create = useMutation({
    mutationFn: (body: object) => api<Agent>('/v1/agents', { body }),
    onSuccess: (agent) => {
      toast.success(`${agent.name} was created.`);
      router.push(`/agents/${agent.id}`);
    },
  });
  return (
    <div className="mx-auto w-full max-w-3xl p-4 md:p-6">
      <PageHeader title="New agent" />
      <Panel className="p-5">
        <AgentForm action="Create" busy={create.isPending} error={create.error} onSubmit={create.mutate} />
      </Panel>
    </div>
  );
}

export function AgentPage({ id }: { id: string }) {
  const client = useQueryClient();
  const query = useQuery({
    queryKey: ['agent', id],
    queryFn: ({ signal }) => api<Agent>(`/v1/agents/${id}`, { signal }),
  });
  const versions = usePages<Agent>(['agent-versions', id], `/v1/agents/${id}/versions?limit=20`);
  const [shown, setShown] = useState<Agent>();
  const [starting, setStarting] = useState(false);
  const [archiving, setArchiving] = useState(false);
  const refresh = () =>
    Promise.all([
      client.invalidateQueries({ queryKey: ['agent', id] }),
      client.invalidateQueries({ queryKey: ['agent-versions', id] }),
      client.invalidateQueries({ queryKey: ['agents'] }),
    ]);
  const save = useMutation({
    mutationFn: (body: object) => api<Agent>(`/v1/agents/${id}`, { body: { ...body, version: query.data?.version } }),
    onSuccess: async (agent) => {
      toast.success(
        agent.version === query.data?.version ? 'Nothing had changed.' : `Saved as version ${agent.version}.`,
      );
      await refresh();
    },
  });
  const archive = useMutation({
    mutationFn: () => api<Agent>(`/v1/agents/${id}/archive`, { method: 'POST' }),
    onSuccess: async () => {
      setArchiving(false);
      await refresh();
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  if (query.isPending) return <Loading />;
  if (query.isError) return <Failure error={query.error} onRetry={() => void query.refetch()} />;
  const agent = query.data;
  const conflict = save.error instanceof ApiError && save.error.status === 409;
  const isArchived = agent.archived_at !== null;
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title={agent.name} about={<code className="font-mono text-xs">{agent.id}</code>}>
        <Badge>v{agent.version}</Badge>
        {isArchived ? (
          <Badge tone="warn">Archived</Badge>
        ) : (
          <>
            <Button onClick={() => setArchiving(true)}>Archive</Button>
            <Button look="primary" onClick={() => setStarting(true)}>
              <Play className="size-4" aria-hidden /> Start a session
            </Button>
          </>
        )}
      </PageHeader>
      <div className="grid gap-5 lg:grid-cols-[minmax(0,1fr)_18rem]">
        <Panel className="p-5">
          {conflict ? (
            <div role="alert" className="mb-4 flex items-center gap-3 rounded-lg bg-warn-soft p-3 text-sm text-warn">
              <span className="flex-1">Somebody saved another version meanwhile. Your text is still here.</span>
              <Button size="small" onClick={() => void refresh().then(() => save.reset())}>
                Save over the newest next time
              </Button>
            </div>
          ) : null}
          {shown === undefined ? null : (
            <div className="mb-4 flex items-center gap-3 rounded-lg bg-raised p-3 text-sm">
              <span className="flex-1">This is version {shown.version}. Saving makes it the newest.</span>
              <Button size="small" onClick={() => setShown(undefined)}>
                Back to version {agent.version}
              </Button>
            </div>
          )}
          <AgentForm
            key={shown?.version ?? 'current'}
            agent={shown ?? agent}
            action="Save as a new version"
            disabled={isArchived}
            busy={save.isPending}
            error={conflict ? null : save.error}
            onSubmit={save.mutate}
          />
        </Panel>
        <Panel className="self-start overflow-hidden">
          <h2 className="flex items-center gap-2 border-b px-4 py-3 text-sm font-medium">
            <History className="size-4 text-soft" aria-hidden /> Versions
          </h2>
          <Paged list={versions} empty={null}>
            <ul className="divide-y">
              {versions.items.map((version) => (
                <li key={version.version}>
                  <button
                    type="button"
                    onClick={() => setShown(version.version === agent.version ? undefined : version)}
                    className="flex w-full items-center gap-2 px-4 py-2.5 text-left text-sm hover:bg-raised/60"
                  >
                    <Badge tone={version.version === (shown ?? agent).version ? 'good' : 'neutral'}>
                      v{version.version}
                    </Badge>
                    <span className="min-w-0 flex-1 truncate text-soft">{version.model.id}</span>
                    <span className="text-xs text-soft">
                      <Time at={version.updated_at} />
                    </span>
                  </button>
                </li>
              ))}
            </ul>
          </Paged>
        </Panel>
      </div>
      <StartSession open={starting} onClose={() => setStarting(false)} agentId={agent.id} />
      <Confirm
        open={archiving}
        title={`Archive ${agent.name}?`}
        about="No new session can use it, and it cannot be changed any more. Sessions that have it go on. This cannot be undone."
        action="Archive"
        busy={archive.isPending}
        onConfirm={() => archive.mutate()}
        onClose={() => setArchiving(false)}
      />
    </div>
  );
}
