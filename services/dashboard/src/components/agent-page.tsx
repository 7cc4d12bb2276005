'use client';
import type { Agent } from '@holdfast/contracts';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { Code, History, MessagesSquare, Plus } from 'lucide-react';
import Link from 'next/link';
import { useRouter } from 'next/navigation';
import { useState } from 'react';
import { toast } from 'sonner';
import { ApiError, api, messageOf } from '../lib/api.ts';
import { AgentForm } from './agent-form.tsx';
import { Paged, usePages } from './paged.tsx';
import { Snippets, startSnippets } from './snippets.tsx';
import { StartSession } from './start-session.tsx';
import {
  Badge,
  Button,
  buttonClass,
  Confirm,
  cn,
  Failure,
  Id,
  Loading,
  Modal,
  PageHeader,
  Panel,
  Time,
} from './ui.tsx';

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
      <PageHeader title="New agent" about="Sessions keep the version that they were started with." />
      <Panel>
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
  const [dialog, setDialog] = useState<'start' | 'api' | 'archive' | null>(null);
  const close = () => setDialog(null);
  const refresh = () =>
    Promise.all([
      client.invalidateQueries({ queryKey: ['agent', id] }),
      client.invalidateQueries({ queryKey: ['agent-versions', id] }),
      client.invalidateQueries({ queryKey: ['agents'] }),
    ]);
  const save = useMutation({
    // Without a version it is saved over whatever is the newest.
    mutationFn: ({ body, version }: { body: object; version?: number }) =>
      api<Agent>(`/v1/agents/${id}`, { body: version === undefined ? body : { ...body, version } }),
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
      close();
      await refresh();
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  if (query.isPending) return <Loading />;
  if (query.data === undefined)
    return (
      <Failure
        error={query.error}
        onRetry={() => void query.refetch()}
        back={{ href: '/agents', text: 'All agents' }}
      />
    );
  const agent = query.data;
  const conflict = save.error instanceof ApiError && save.error.status === 409;
  const isArchived = agent.archived_at !== null;
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader
        title={
          <>
            {agent.name} <Badge className="ml-1 align-middle tabular-nums">v{agent.version}</Badge>
            {isArchived ? <Badge className="ml-1 align-middle">Archived</Badge> : null}
          </>
        }
        about={<Id id={agent.id} />}
      >
        <Link className={buttonClass('plain')} href={`/sessions?agent=${agent.id}`}>
          <MessagesSquare className="size-4" aria-hidden /> Sessions
        </Link>
        {isArchived ? null : (
          <>
            <Button onClick={() => setDialog('api')}>
              <Code className="size-4" aria-hidden /> API
            </Button>
            <Button onClick={() => setDialog('archive')}>Archive</Button>
            <Button look="primary" onClick={() => setDialog('start')}>
              <Plus className="size-4" aria-hidden /> New session
            </Button>
          </>
        )}
      </PageHeader>
      <div className="grid grid-cols-1 gap-5 lg:grid-cols-[minmax(0,1fr)_18rem]">
        <Panel>
          {conflict ? (
            <div
              role="alert"
              className="m-5 mb-0 flex flex-wrap items-center gap-x-3 gap-y-2 rounded-lg bg-warn-soft p-3 text-sm text-warn"
            >
              <span className="min-w-56 flex-1">
                A newer version was saved meanwhile. What you wrote is still here; it can become the newest.
              </span>
              <Button size="small" onClick={() => save.mutate({ body: save.variables?.body ?? {} })}>
                Save mine
              </Button>
            </div>
          ) : null}
          {shown === undefined ? null : (
            <div className="m-5 mb-0 flex flex-wrap items-center gap-x-3 gap-y-2 rounded-lg bg-raised p-3 text-sm">
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
            onSubmit={(body) => save.mutate({ body, version: agent.version })}
          />
        </Panel>
        <Panel className="self-start overflow-hidden">
          <h2 className="flex items-center gap-2 border-b px-4 py-3 text-sm font-medium">
            <History className="size-4 text-soft" aria-hidden /> Versions
          </h2>
          <Paged list={versions} empty={null}>
            <ul className="divide-y">
              {versions.items.map((version, i) => {
                const isShown = version.version === (shown ?? agent).version;
                return (
                  <li key={version.version}>
                    <button
                      type="button"
                      aria-pressed={isShown}
                      onClick={() => setShown(version.version === agent.version ? undefined : version)}
                      className="block w-full px-4 py-2.5 text-left text-sm -outline-offset-2 hover:bg-raised/60"
                    >
                      <span className="flex items-center justify-between gap-2">
                        <Badge tone={isShown ? 'good' : 'neutral'} className="tabular-nums">
                          v{version.version}
                        </Badge>
                        <span className="text-xs text-soft">
                          <Time at={version.updated_at} />
                        </span>
                      </span>
                      <span className={cn('mt-1 block text-xs', isShown ? 'text-ink' : 'text-soft')}>
                        {changes(version, versions.items[i + 1])}
                      </span>
                    </button>
                  </li>
                );
              })}
            </ul>
          </Paged>
        </Panel>
      </div>
      <StartSession open={dialog === 'start'} onClose={close} agentId={agent.id} />
      <Modal
        open={dialog === 'api'}
        onClose={close}
        title="Start sessions over the API"
        about="With an API key of this workspace in HOLDFAST_API_KEY."
        className="w-[min(44rem,calc(100vw-2rem))]"
      >
        <Snippets snippets={startSnippets(agent.id)} />
      </Modal>
      <Confirm
        open={dialog === 'archive'}
        title={`Archive ${agent.name}?`}
        about="No new session can use it, and it cannot be changed any more. Sessions that have it go on. This cannot be undone."
        action="Archive"
        busy={archive.isPending}
        onConfirm={() => archive.mutate()}
        onClose={close}
      />
    </div>
  );
}

/** What a version changed of the one before it. */
function changes(version: Agent, before: Agent | undefined): string {
  if (version.version === 1) return 'Created';
  if (before === undefined) return version.model.id;
  const fields = [
    ['name', 'name'],
    ['model', 'model'],
    ['harness', 'harness'],
    ['description', 'description'],
    ['system', 'instructions'],
    ['tools', 'tools'],
    ['metadata', 'metadata'],
  ] as const;
  const changed = fields
    .filter(([field]) => JSON.stringify(version[field]) !== JSON.stringify(before[field]))
    .map(([, text]) => text)
    .join(', ');
  return changed === '' ? 'Changed' : `Changed ${changed}`;
}
