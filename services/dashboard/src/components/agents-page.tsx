'use client';
import type { Agent } from '@holdfast/contracts';
import { Bot, Plus } from 'lucide-react';
import Link from 'next/link';
import { useState } from 'react';
import { Paged, usePages } from './paged.tsx';
import { Badge, Button, buttonClass, Empty, PageHeader, Panel, Time } from './ui.tsx';

export function AgentsPage() {
  const [archived, setArchived] = useState(false);
  const list = usePages<Agent>(['agents', archived], `/v1/agents?limit=50${archived ? '&include_archived=true' : ''}`);
  const create = (
    <Link className={buttonClass('primary')} href="/agents/new">
      <Plus className="size-4" aria-hidden /> New agent
    </Link>
  );
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title="Agents" about="A model, instructions and tools. Every change is a new version.">
        <Button look="ghost" aria-pressed={archived} onClick={() => setArchived(!archived)}>
          {archived ? 'Hide archived' : 'Show archived'}
        </Button>
        {create}
      </PageHeader>
      <Panel className="overflow-hidden">
        <Paged
          list={list}
          empty={
            <Empty icon={<Bot />} title="No agents yet">
              <p>An agent is what sessions are started with.</p>
              {create}
            </Empty>
          }
        >
          <ul className="divide-y">
            {list.items.map((agent) => (
              <li key={agent.id}>
                <Link href={`/agents/${agent.id}`} className="flex items-center gap-4 px-4 py-3 hover:bg-raised/60">
                  <span className="min-w-0 flex-1">
                    <span className="flex items-center gap-2">
                      <span className="truncate font-medium">{agent.name}</span>
                      {agent.archived_at === null ? null : <Badge>Archived</Badge>}
                    </span>
                    <span className="block truncate text-sm text-soft">
                      {agent.description ?? agent.system ?? agent.id}
                    </span>
                  </span>
                  <span className="hidden text-sm text-soft sm:block">{agent.model.id}</span>
                  <Badge>v{agent.version}</Badge>
                  <span className="hidden w-24 text-right text-sm text-soft sm:block">
                    <Time at={agent.updated_at} />
                  </span>
                </Link>
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
    </div>
  );
}
